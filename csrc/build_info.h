// Build information of this module.

#pragma once

#include <string>
#include <vector>

namespace setok {

struct BuildInfo {
  std::string compiler;           // name and version
  long cxx_standard;              // value of __cplusplus, e.g. 201703
  bool openmp;                    // compiled with OpenMP
  std::vector<std::string> isas;  // instruction sets with kernels, best first
  std::string isa;                // instruction set in use
};

BuildInfo build_info();

}  // namespace setok
