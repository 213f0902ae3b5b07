// Gradients of single distances.

#pragma once

#include "types.h"

namespace setok::SETOK_ISA {
namespace {

template <class T>
void sum_differences(const T* x, index_t dim, index_t i, const index_t* partner, const T* weight,
                     index_t count, T* sum) {
  // Four partners at a time, so that the sum is read and written once for all of them.
  constexpr index_t kGroup = 4;
  const T* own = x + i * dim;
  for (index_t j = 0; j < dim; ++j) sum[j] = 0;
  for (index_t start = 0; start < count; start += kGroup) {
    const T* other[kGroup];
    T w[kGroup];
    for (index_t e = 0; e < kGroup; ++e) {
      const bool there = start + e < count;
      other[e] = there ? x + partner[start + e] * dim : own;
      w[e] = there ? weight[start + e] : T{0};
    }
    const T *a = other[0], *b = other[1], *c = other[2], *d = other[3];
#pragma omp simd
    for (index_t j = 0; j < dim; ++j)
      sum[j] += (w[0] * (own[j] - a[j]) + w[1] * (own[j] - b[j])) +
                (w[2] * (own[j] - c[j]) + w[3] * (own[j] - d[j]));
  }
}

template <class T>
void add_scaled(T a, const T* x, const T* y, index_t dim, T* sum) {
#pragma omp simd
  for (index_t j = 0; j < dim; ++j) sum[j] += a * x[j] - y[j];
}

}  // namespace
}  // namespace setok::SETOK_ISA
