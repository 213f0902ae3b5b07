// Exponential for vectorised loops: the same instructions in every lane, about 1 ulp.

#pragma once

#include <cstring>

#include "common.h"

namespace setok {

template <class To, class From>
SETOK_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps the size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// exp(x) for x below 88; 0 from -87 down (subnormal results are flushed).
SETOK_INLINE float vexp(float x) {
  constexpr float kLowest = -87.0f, kMagic = 12582912.0f;  // 1.5 * 2**23: rounds to an integer
  const float c = x < kLowest ? kLowest : x;
  const float shifted = c * 1.44269504088896341f + kMagic;
  const float n = shifted - kMagic;
  const float r = (c - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  const float y = (p * r) * r + r + 1.0f;
  // The low bits of `shifted` hold n.
  const uint32_t power = (bits_as<uint32_t>(shifted) << 23) + 0x3f800000u;
  const float result = y * bits_as<float>(power);
  return x < kLowest ? 0.0f : result;
}

// exp(x) for x below 709; 0 from -708 down.
SETOK_INLINE double vexp(double x) {
  constexpr double kLowest = -708.0, kMagic = 6755399441055744.0;  // 1.5 * 2**52
  const double c = x < kLowest ? kLowest : x;
  const double shifted = c * 1.44269504088896340736 + kMagic;
  const double n = shifted - kMagic;
  const double r = (c - n * 6.93145751953125e-1) - n * 1.42860682030941723212e-6;
  double p = 1.0 / 6227020800.0;
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  const double y = (p * r) * r + r + 1.0;
  const uint64_t power = (bits_as<uint64_t>(shifted) << 52) + 0x3ff0000000000000ull;
  const double result = y * bits_as<double>(power);
  return x < kLowest ? 0.0 : result;
}

}  // namespace setok
