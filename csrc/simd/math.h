// Branchless arithmetic for vectorised loops. The standard library's functions are inline, which
// table.cpp must not use.

#pragma once

#include "types.h"

namespace setok::SETOK_ISA {
namespace {

SETOK_INLINE float root(float x) { return __builtin_sqrtf(x); }
SETOK_INLINE double root(double x) { return __builtin_sqrt(x); }

SETOK_INLINE float magnitude(float x) { return __builtin_fabsf(x); }
SETOK_INLINE double magnitude(double x) { return __builtin_fabs(x); }

// The e of 2**e <= |x| < 2**(e + 1).
SETOK_INLINE int exponent_of(float x) { return __builtin_ilogbf(x); }
SETOK_INLINE int exponent_of(double x) { return __builtin_ilogb(x); }

template <class T>
SETOK_INLINE T power_of_two(int exponent) {
  if constexpr (sizeof(T) == 4)
    return __builtin_ldexpf(1, exponent);
  else
    return __builtin_ldexp(1, exponent);
}

template <class T>
SETOK_INLINE T min_of(T a, T b) {
  return b < a ? b : a;
}

template <class T>
SETOK_INLINE T max_of(T a, T b) {
  return a < b ? b : a;
}

// 2**x for x below 127, about 1 ulp; 0 from -126 down (subnormal results are flushed).
SETOK_INLINE float vexp2(float x) {
  constexpr float kLowest = -126.0f, kMagic = 12582912.0f;  // 1.5 * 2**23: rounds to an integer
  const float c = x < kLowest ? kLowest : x;
  const float shifted = c + kMagic;
  const float r = c - (shifted - kMagic);
  // Taylor series of exp(r ln 2), |r| <= 1/2.
  float p = 1.5252734e-5f;
  p = p * r + 1.5403530e-4f;
  p = p * r + 1.3333558e-3f;
  p = p * r + 9.6181291e-3f;
  p = p * r + 5.5504109e-2f;
  p = p * r + 2.4022651e-1f;
  p = p * r + 6.9314718e-1f;
  const float y = p * r + 1.0f;
  // The low bits of `shifted` hold the integer.
  const uint32_t power = (bits_as<uint32_t>(shifted) << 23) + 0x3f800000u;
  const float result = y * bits_as<float>(power);
  return x <= kLowest ? 0.0f : result;
}

// 2**x for x below 1023; 0 from -1022 down.
SETOK_INLINE double vexp2(double x) {
  constexpr double kLowest = -1022.0, kMagic = 6755399441055744.0;  // 1.5 * 2**52
  const double c = x < kLowest ? kLowest : x;
  const double shifted = c + kMagic;
  const double r = c - (shifted - kMagic);
  double p = 1.3691488853904128e-12;
  p = p * r + 2.5678435993488206e-11;
  p = p * r + 4.4455382718708116e-10;
  p = p * r + 7.054911620801123e-09;
  p = p * r + 1.01780860092397e-07;
  p = p * r + 1.321548679014431e-06;
  p = p * r + 1.5252733804059841e-05;
  p = p * r + 0.0001540353039338161;
  p = p * r + 0.0013333558146428443;
  p = p * r + 0.009618129107628477;
  p = p * r + 0.05550410866482158;
  p = p * r + 0.24022650695910072;
  p = p * r + 0.6931471805599453;
  const double y = p * r + 1.0;
  const uint64_t power = (bits_as<uint64_t>(shifted) << 52) + 0x3ff0000000000000ull;
  const double result = y * bits_as<double>(power);
  return x <= kLowest ? 0.0 : result;
}

}  // namespace
}  // namespace setok::SETOK_ISA
