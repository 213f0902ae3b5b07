// Weighted sums of tokens.

#pragma once

#include "types.h"

namespace setok::SETOK_ISA {
namespace {

template <class T>
bool is_finite(const T* x, index_t dim) {
  // 0 * x is NaN exactly for non-finite x, and the sum of the zeros keeps it.
  T check[kLanes] = {};
  const index_t whole = dim / kLanes * kLanes;
  for (index_t j = 0; j < whole; j += kLanes) {
#pragma omp simd
    for (index_t lane = 0; lane < kLanes; ++lane) check[lane] += 0 * x[j + lane];
  }
  for (index_t j = whole; j < dim; ++j) check[0] += 0 * x[j];
  T sum_of_checks = 0;
  for (index_t lane = 0; lane < kLanes; ++lane) sum_of_checks += check[lane];
  return sum_of_checks == 0;
}

template <class T>
void accumulate(T* sum, const T* x, T weight, index_t dim) {
#pragma omp simd
  for (index_t j = 0; j < dim; ++j) sum[j] += weight * x[j];
}

}  // namespace
}  // namespace setok::SETOK_ISA
