// Normalisation of tokens, and neighbour bits.

#pragma once

#include "math.h"
#include "types.h"

namespace setok::SETOK_ISA {
namespace {

template <class T>
void normalise(T* x, index_t dim) {
  T largest = 0, maxima[kLanes] = {};
  const index_t whole = dim / kLanes * kLanes;
  for (index_t block = 0; block < whole; block += kLanes) {
#pragma omp simd
    for (index_t lane = 0; lane < kLanes; ++lane)
      maxima[lane] = max_of(maxima[lane], magnitude(x[block + lane]));
  }
  for (index_t j = whole; j < dim; ++j) maxima[0] = max_of(maxima[0], magnitude(x[j]));
  for (index_t lane = 0; lane < kLanes; ++lane) largest = max_of(largest, maxima[lane]);
  if (largest == 0) return;
  const int exponent = exponent_of(largest), half = exponent / 2;
  // 2**-exponent may leave the range although its two factors do not.
  const T a = power_of_two<T>(-half), b = power_of_two<T>(half - exponent);
  double squares[kLanes] = {};
  for (index_t block = 0; block < whole; block += kLanes) {
#pragma omp simd
    for (index_t lane = 0; lane < kLanes; ++lane) {
      const T value = x[block + lane] = x[block + lane] * a * b;
      squares[lane] += static_cast<double>(value) * static_cast<double>(value);
    }
  }
  for (index_t j = whole; j < dim; ++j) {
    x[j] = x[j] * a * b;
    squares[j - whole] += static_cast<double>(x[j]) * static_cast<double>(x[j]);
  }
  double sum = 0;
  for (index_t lane = 0; lane < kLanes; ++lane) sum += squares[lane];
  const T norm = static_cast<T>(root(sum));
#pragma omp simd
  for (index_t j = 0; j < dim; ++j) x[j] /= norm;
}

template <class T>
void find_near(T* tile, T bound, Word* row, Word* column) {
  for (index_t c = 0; c < kPanel; ++c) column[c] = 0;
  for (index_t r = 0; r < kPanel; ++r) {
    T* d = tile + r * kPanel;
    const Word own = Word{1} << r;
    Word bits = 0;
#pragma omp simd reduction(| : bits)
    for (index_t c = 0; c < kPanel; ++c) {
      d[c] = -d[c];
      const bool near = d[c] < bound;
      bits |= near ? Word{1} << c : Word{0};
      column[c] |= near ? own : Word{0};
    }
    row[r] = bits;
  }
}

index_t count_bits(const Word* words, index_t count) {
  index_t bits = 0;
  for (index_t w = 0; w < count; ++w) bits += __builtin_popcount(words[w]);
  return bits;
}

}  // namespace
}  // namespace setok::SETOK_ISA
