// What this module was built with, and what the processor it runs on can do.

#pragma once

#include <string>

namespace setok {

struct BuildInfo {
  std::string compiler;  // name and version
  long cxx_standard;     // value of __cplusplus, e.g. 201703
  bool openmp;           // compiled with OpenMP
  std::string isa;       // instruction set the whole file may use: avx512, avx2 or baseline
  bool clones;           // whether kernels have clones for better ones, chosen when it is loaded
};

BuildInfo build_info();

// Best instruction set of this processor that kernels have a clone for: avx512, avx2 or baseline.
std::string cpu_isa();

}  // namespace setok
