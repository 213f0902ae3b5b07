// What this module was built with, and what it uses.

#pragma once

#include <string>
#include <vector>

namespace setok {

struct BuildInfo {
  std::string compiler;           // name and version
  long cxx_standard;              // value of __cplusplus, e.g. 201703
  bool openmp;                    // compiled with OpenMP
  std::vector<std::string> isas;  // instruction sets it has kernels for, the best first
  std::string isa;                // the one in use
};

BuildInfo build_info();

}  // namespace setok
