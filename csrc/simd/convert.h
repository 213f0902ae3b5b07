// Conversion between 16-bit floating-point numbers and float.

#pragma once

#include "math.h"
#include "types.h"

namespace setok::SETOK_ISA {
namespace {

SETOK_INLINE float from_half(uint16_t half) {
  const uint32_t w = static_cast<uint32_t>(half) << 16, twice = w + w;
  const float normal = bits_as<float>((twice >> 4) + (0xE0u << 23)) * 0x1.0p-112f;
  const float subnormal = bits_as<float>((twice >> 17) | (126u << 23)) - 0.5f;
  const uint32_t magnitude = bits_as<uint32_t>(twice < (1u << 27) ? subnormal : normal);
  return bits_as<float>((w & 0x80000000u) | magnitude);
}

SETOK_INLINE uint16_t to_half(float x) {
  // The additions round like the narrow type; a magnitude above its range becomes infinite.
  const uint32_t w = bits_as<uint32_t>(x), twice = w + w, exponent = twice & 0xff000000u;
  const uint32_t bias = exponent < 0x71000000u ? 0x71000000u : exponent;
  const float scaled = (magnitude(x) * 0x1.0p+112f) * 0x1.0p-110f;
  const uint32_t rounded = bits_as<uint32_t>(bits_as<float>((bias >> 1) + 0x07800000u) + scaled);
  const uint32_t magnitude = ((rounded >> 13) & 0x7c00u) + (rounded & 0x0fffu);
  const uint32_t number = twice > 0xff000000u ? 0x7e00u : magnitude;
  return static_cast<uint16_t>(((w >> 16) & 0x8000u) | number);
}

SETOK_INLINE uint16_t to_bfloat(float x) {
  const uint32_t w = bits_as<uint32_t>(x), rounded = w + 0x7fffu + ((w >> 16) & 1u);
  const bool is_nan = (w & 0x7fffffffu) > 0x7f800000u;
  return static_cast<uint16_t>(is_nan ? (w >> 16) | 0x40u : rounded >> 16);
}

void widen(const uint16_t* from, bool half, float* to, index_t count) {
  if (half) {
#pragma omp simd
    for (index_t i = 0; i < count; ++i) to[i] = from_half(from[i]);
  } else {
#pragma omp simd
    for (index_t i = 0; i < count; ++i)
      to[i] = bits_as<float>(static_cast<uint32_t>(from[i]) << 16);
  }
}

void narrow(const float* from, bool half, uint16_t* to, index_t count) {
  if (half) {
#pragma omp simd
    for (index_t i = 0; i < count; ++i) to[i] = to_half(from[i]);
  } else {
#pragma omp simd
    for (index_t i = 0; i < count; ++i) to[i] = to_bfloat(from[i]);
  }
}

}  // namespace
}  // namespace setok::SETOK_ISA
