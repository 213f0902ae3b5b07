#include "build_info.h"

#include "common.h"

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

#if defined(__AVX512F__)
  info.isa = "avx512";
#elif defined(__AVX2__)
  info.isa = "avx2";
#else
  info.isa = "baseline";
#endif
#ifdef SETOK_CLONED
  info.clones = true;
#else
  info.clones = false;
#endif
  return info;
}

std::string cpu_isa() {
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
  // The groups are those of x86-64-v4 and x86-64-v3, as far as the builtin has names for them:
  // the level names themselves are unknown to older compilers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx2 && avx512) return "avx512";
  if (avx2) return "avx2";
#endif
  return "baseline";
}

}  // namespace setok
