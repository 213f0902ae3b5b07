// The instruction sets that this file has kernels for, and which of them is in use.

#pragma once

#include <string>
#include <vector>

namespace setok {

// Names of the sets, the best first: avx512, avx2 and baseline, or baseline alone.
std::vector<std::string> isas();

// The best of them that this processor supports.
std::string cpu_isa();

// The set to use where `best` is the best that the processor supports: that one, or the one that
// `limit` names, unless it is null or empty. Throws std::invalid_argument where the processor does
// not support what it names, or there is no such set.
std::string choose_isa(const char* limit, const std::string& best);

// The set in use, chosen at the first call of this function or of kernels(); the environment
// variable SETOK_CPU_CAPABILITY limits the choice. Throws as choose_isa does.
std::string isa();

}  // namespace setok
