// Inner products in float64, for the gradients of merging.

#pragma once

#include "types.h"

namespace setok::SETOK_ISA {
namespace {

template <class T>
double product(const T* a, const T* b, index_t count) {
  double sum[kLanes] = {};
  const index_t whole = count / kLanes * kLanes;
  for (index_t j = 0; j < whole; j += kLanes) {
#pragma omp simd
    for (index_t lane = 0; lane < kLanes; ++lane)
      sum[lane] += static_cast<double>(a[j + lane]) * static_cast<double>(b[j + lane]);
  }
  for (index_t j = whole; j < count; ++j)
    sum[j - whole] += static_cast<double>(a[j]) * static_cast<double>(b[j]);
  double total = 0;
  for (index_t lane = 0; lane < kLanes; ++lane) total += sum[lane];
  return total;
}

// Sum of products of three factors.
template <class T>
double product_of_three(const T* a, const T* b, const T* c, index_t count) {
  double sum[kLanes] = {};
  const index_t whole = count / kLanes * kLanes;
  for (index_t j = 0; j < whole; j += kLanes) {
#pragma omp simd
    for (index_t lane = 0; lane < kLanes; ++lane)
      sum[lane] +=
          static_cast<double>(a[j + lane] * b[j + lane]) * static_cast<double>(c[j + lane]);
  }
  for (index_t j = whole; j < count; ++j)
    sum[j - whole] += static_cast<double>(a[j] * b[j]) * static_cast<double>(c[j]);
  double total = 0;
  for (index_t lane = 0; lane < kLanes; ++lane) total += sum[lane];
  return total;
}

}  // namespace
}  // namespace setok::SETOK_ISA
