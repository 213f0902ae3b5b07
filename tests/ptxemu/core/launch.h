// Structures exchanged with Python; engine.py has the same layouts.
#pragma once

#include <cstdint>

// Kinds of findings; Python has the same list.
enum Kind {
  OOB_GLOBAL = 1,
  MISALIGNED,
  OOB_SHARED,
  RACE_SHARED,
  RACE_GLOBAL,
  RACE_CTAS,
  UNINIT_GLOBAL,
  UNINIT_SHARED,
  ASYNC_COPY,
  BARRIER,
  WARP_SYNC,
  WGMMA_REGISTER,
  ASYNC_OPERAND,
  NOTE_LANES,
  NOTE_SAME_VALUE,
  NOTE_PROXY,
  HANG,
  UNSUPPORTED,
  SAME_INSTRUCTION,
  BARRIER_SITES,
  NOTE_WGMMA_INPUT,
  MBARRIER,
  NO_PROXY_FENCE,
  TENSOR_MAP,
};

static const int NONE = INT32_MIN;
static const uint32_t FULL = 0xffffffffu;
// Value of `apend` for a bulk copy, whose index is in `apc`.
static const uint8_t BULK = 0xff;

struct Ins {
  int32_t op;
  int32_t guard;   // twice the predicate, plus 1 where negated; below 0: none
  int32_t a[8];    // operands: slots of registers, or constants, counted down from -1
  int32_t nx, xo;  // more of them: how many, and where in the pool
  int32_t imm, imm2;
  int32_t uses;  // bits: which of `a` are registers that a pending product must not be part of
  int32_t imm3;
};

struct Finding {
  int32_t kind, pc1, pc2, cta, warp1, warp2, lane, segment;
  int64_t offset, count;
};

struct Segment {
  uint8_t* host;  // of the first byte
  int64_t bytes;
  uint64_t va;     // where the kernel sees it
  uint8_t* init;   // one byte each, 0: never written; null: all written
  int64_t nspans;  // of the views that were passed, [begin, end) each
  int64_t* spans;
};

struct Launch {
  const Ins* code;
  const int32_t* pool;
  const uint32_t* consts;
  const uint8_t* params;
  Segment* segments;
  int64_t n_ins, n_regs, n_preds, n_segments;
  int64_t grid[3];
  int64_t num_warps, shared_bytes;
  uint64_t seed;
  int64_t
      flags;  // 1: checks, 2: counters, 4: tensor cores truncate, 8: copies land late, 16: early
              // (neither: each at random), 32: approximations are one ulp off, 64: strict views
  int64_t max_ins;  // per warp, before a hang is reported
  uint64_t* pc_count;
  uint64_t* pc_lanes;
  uint64_t* pc_cost;     // sectors, or passes through the banks
  uint64_t* pc_longest;  // executions by the program with the most of them
  Finding* findings;
  int64_t max_findings;
  int64_t n_findings;       // out
  int64_t n_longest_first;  // out: of these, those of the program with the most executions
  int64_t n_first;  // out: distinct sectors that loads through L1 read, summed over programs
  int64_t shared_base, param_base, param_bytes;
};
