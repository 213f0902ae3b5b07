// Functional emulator of the PTX that Triton emits: warps of 32 lanes in lockstep with
// reconvergence at the lowest program counter, serial programs in any order, and shadow memory that
// finds races, reads of unwritten memory, and accesses outside of tensors.
//
// A single translation unit, compiled by build.py and called through ctypes by engine.py.

// clang-format off
#include "shadow.cpp"
#include "costs.cpp"
#include "convert.cpp"
#include "moves.cpp"
#include "integers.cpp"
#include "floats.cpp"
#include "collectives.cpp"
#include "access.cpp"
#include "copies.cpp"
#include "tensor_core.cpp"
#include "tensor_map.cpp"
#include "bulk.cpp"
#include "mbarrier.cpp"
#include "step.cpp"
#include "run.cpp"
