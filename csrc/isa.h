// Instruction sets with kernels in this library, and choice of the one in use.

#pragma once

#include <string>
#include <vector>

namespace setok {

// Names of the sets, best first: avx512bf16, avx512, avx2 and baseline, or baseline
// alone.
std::vector<std::string> isas();

// Best set that this processor supports.
std::string cpu_isa();

// Set to use on a processor that supports `best`: `limit`, or `best` if that is null or empty.
// Throws std::invalid_argument if `limit` is unknown or not supported by the processor.
std::string choose_isa(const char* limit, const std::string& best);

// Set in use, chosen at the first call of this function or of kernels(). The environment variable
// SETOK_CPU_CAPABILITY limits the choice. Throws like choose_isa.
std::string isa();

}  // namespace setok
