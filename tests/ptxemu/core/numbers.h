// Floating-point arithmetic of PTX: halves, roundings, minima, and sums of tensor cores.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

static inline float as_f(uint32_t x) {
  float f;
  memcpy(&f, &x, 4);
  return f;
}
static inline uint32_t as_u(float f) {
  uint32_t x;
  memcpy(&x, &f, 4);
  return x;
}
static inline double as_d(uint64_t x) {
  double f;
  memcpy(&f, &x, 8);
  return f;
}
static inline uint64_t as_u64(double f) {
  uint64_t x;
  memcpy(&x, &f, 8);
  return x;
}

static inline float bf2f(uint16_t h) { return as_f((uint32_t)h << 16); }
static inline float hf2f(uint16_t h) {
  _Float16 x;
  memcpy(&x, &h, 2);
  return (float)x;
}

static inline uint16_t d2bf(double v) {
  if (std::isnan(v)) return 0x7fff;
  // Round to odd in float32 first: then the second rounding is the only one.
  float f = (float)v;
  uint32_t u = as_u(f);
  if (!std::isinf(f) && (double)f != v) {
    if (std::fabs((double)f) > std::fabs(v)) u -= 1;
    u |= 1;
  } else if (std::isinf(f) && !std::isinf(v)) {
    u = (u & 0x80000000u) | 0x7f7fffffu;
  }
  uint32_t rounded = u + 0x7fff + ((u >> 16) & 1);
  return (uint16_t)(rounded >> 16);
}
static inline uint16_t d2h(double v) {
  if (std::isnan(v)) return 0x7fff;
  _Float16 x = (_Float16)v;
  uint16_t h;
  memcpy(&h, &x, 2);
  return h;
}
static inline double h2d(uint16_t h, bool bf) { return bf ? bf2f(h) : hf2f(h); }
static inline uint16_t d2x(double v, bool bf) { return bf ? d2bf(v) : d2h(v); }

// Hardware always returns the same NaN.
static inline float canon(float f) { return f != f ? as_f(0x7fffffffu) : f; }
static inline float ftz(float f) {
  return std::fabs(f) < 1.17549435e-38f ? std::copysign(0.0f, f) : f;
}

static inline double fmin_ptx(double a, double b) {
  if (std::isnan(a)) return b;
  if (std::isnan(b)) return a;
  if (a == 0 && b == 0) return std::signbit(a) ? a : b;
  return a < b ? a : b;
}
static inline double fmax_ptx(double a, double b) {
  if (std::isnan(a)) return b;
  if (std::isnan(b)) return a;
  if (a == 0 && b == 0) return std::signbit(a) ? b : a;
  return a > b ? a : b;
}

// Sum of products and an accumulator on a tensor core: exact and rounded once, or aligned to the
// maximum exponent with two bits more than float32, and truncated.
static inline float tc_sum(const double* products, int n, float c, bool truncate) {
  double s = c;
  if (!truncate) {
    // Products of 8 or 11 bits are exact; so is nearly always their sum in float64.
    double t = 0;
    for (int i = 0; i < n; i++) t += products[i];
    return canon((float)(s + t));
  }
  double top = std::fabs(s);
  bool special = !std::isfinite(s);
  for (int i = 0; i < n; i++) {
    special |= !std::isfinite(products[i]);
    top = std::max(top, std::fabs(products[i]));
  }
  if (special) {
    for (int i = 0; i < n; i++) s += products[i];
    return canon((float)s);
  }
  if (top == 0) return c;
  int e;
  std::frexp(top, &e);
  double unit = std::ldexp(1.0, e - 26), t = std::trunc(s / unit);
  for (int i = 0; i < n; i++) t += std::trunc(products[i] / unit);
  t *= unit;
  float f = (float)t;
  if (std::fabs((double)f) > std::fabs(t)) f = std::nextafter(f, 0.0f);
  return f;
}
