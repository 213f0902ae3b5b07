#include "build_info.h"

#include "isa.h"

namespace setok {

BuildInfo build_info() {
  BuildInfo info;
#if defined(__clang__)
  info.compiler = "clang " __clang_version__;
#elif defined(__GNUC__)
  info.compiler = "gcc " __VERSION__;
#elif defined(_MSC_VER)
  info.compiler = "msvc " + std::to_string(_MSC_VER);
#else
  info.compiler = "unknown";
#endif

  info.cxx_standard = __cplusplus;

#if defined(_OPENMP)
  info.openmp = true;
#else
  info.openmp = false;
#endif

  info.isas = isas();
  info.isa = isa();
  return info;
}

}  // namespace setok
