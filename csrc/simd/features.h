// Magnitude and spread of the features.

#pragma once

#include "math.h"
#include "types.h"

namespace setok::SETOK_ISA {
namespace {

template <class T>
RowStatistics<T> row_statistics(const T* x, const T* origin, double* total, index_t dim) {
  using U = typename Bits<T>::type;
  U largest[kLanes] = {};
  double squares[kLanes] = {};
  const index_t whole = dim / kLanes * kLanes;
  const auto step = [&](index_t j, index_t lane) __attribute__((always_inline)) {
    const U magnitude = bits_as<U>(x[j]) & Bits<T>::kMagnitude;
    largest[lane] = magnitude > largest[lane] ? magnitude : largest[lane];
    const double shifted = static_cast<double>(x[j]) - static_cast<double>(origin[j]);
    squares[lane] += shifted * shifted;
    total[j] += shifted;
  };
  for (index_t j = 0; j < whole; j += kLanes) {
#pragma omp simd
    for (index_t lane = 0; lane < kLanes; ++lane) step(j + lane, lane);
  }
  for (index_t j = whole; j < dim; ++j) step(j, j - whole);
  RowStatistics<T> row{0, 0};
  for (index_t lane = 0; lane < kLanes; ++lane) {
    row.largest = max_of(row.largest, largest[lane]);
    row.squares += squares[lane];
  }
  return row;
}

}  // namespace
}  // namespace setok::SETOK_ISA
