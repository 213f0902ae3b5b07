// Panels of tokens, their inner products, and distances from differences.

#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#include "types.h"

namespace setok::SETOK_ISA {
namespace {

template <class T>
struct Vector {
  typedef T type __attribute__((vector_size(SETOK_BYTES)));
  static constexpr index_t kWidth = SETOK_BYTES / sizeof(T);
};

// Swaps blocks of `half` lanes of (a, b); `lane` is 0, 1, 2, ...
template <class T, index_t half, index_t... lane>
SETOK_INLINE void exchange_lanes(typename Vector<T>::type& a, typename Vector<T>::type& b,
                                 std::integer_sequence<index_t, lane...>) {
  constexpr index_t kWidth = Vector<T>::kWidth;
  const auto first = a, second = b;
#ifdef __clang__
  a = __builtin_shufflevector(first, second, (lane & half ? lane - half + kWidth : lane)...);
  b = __builtin_shufflevector(first, second, (lane & half ? lane + kWidth : lane + half)...);
#else
  // GCC has __builtin_shufflevector only from version 12 on.
  using Integer = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  typedef Integer Index __attribute__((vector_size(SETOK_BYTES)));
  a = __builtin_shuffle(first, second, Index{(lane & half ? lane - half + kWidth : lane)...});
  b = __builtin_shuffle(first, second, Index{(lane & half ? lane + kWidth : lane + half)...});
#endif
}

// Transposes blocks of `half` lanes, then those within them.
template <class T, index_t half>
SETOK_INLINE void exchange(typename Vector<T>::type* rows) {
  if constexpr (half > 0) {
    constexpr index_t kWidth = Vector<T>::kWidth;
#pragma GCC unroll 16
    for (index_t r = 0; r < kWidth; ++r)
      if ((r & half) == 0)
        exchange_lanes<T, half>(rows[r], rows[r + half],
                                std::make_integer_sequence<index_t, kWidth>{});
    exchange<T, half / 2>(rows);
  }
}

// to[c * to_ld + r] = from[r * from_ld + c] for as many rows and columns as a vector is wide.
template <class T>
void transpose_block(const T* from, index_t from_ld, T* to, index_t to_ld) {
  using Lanes = typename Vector<T>::type;
  constexpr index_t kWidth = Vector<T>::kWidth;
  Lanes rows[kWidth];
  for (index_t r = 0; r < kWidth; ++r) std::memcpy(&rows[r], from + r * from_ld, sizeof(Lanes));
  exchange<T, kWidth / 2>(rows);
  for (index_t r = 0; r < kWidth; ++r) std::memcpy(to + r * to_ld, &rows[r], sizeof(Lanes));
}

template <class T>
void transpose_tile(const T* tile, T* to, index_t ld) {
  constexpr index_t kWidth = Vector<T>::kWidth;
  for (index_t r = 0; r < kPanel; r += kWidth)
    for (index_t c = 0; c < kPanel; c += kWidth)
      transpose_block(tile + r * kPanel + c, kPanel, to + c * ld + r, ld);
}

template <class T>
void pack_panel(const T* x, index_t ld, index_t count, index_t dim, T* packed) {
  constexpr index_t kWidth = Vector<T>::kWidth;
  const index_t rows = count / kWidth * kWidth, columns = dim / kWidth * kWidth;
  for (index_t i = 0; count < kPanel && i < kPanel * dim; ++i) packed[i] = 0;
  for (index_t k = 0; k < columns; k += kWidth)
    for (index_t i = 0; i < rows; i += kWidth)
      transpose_block(x + i * ld + k, ld, packed + k * kPanel + i, kPanel);
  for (index_t i = 0; i < count; ++i)
    for (index_t k = i < rows ? columns : 0; k < dim; ++k) packed[k * kPanel + i] = x[i * ld + k];
}

// out (SETOK_ROWS, two vectors), rows kPanel apart, from `depth` features; added to where `more`.
template <class T>
void multiply_block(const T* a, const T* b, index_t depth, bool more, T* out) {
  using Lanes = typename Vector<T>::type;
  constexpr index_t kWidth = Vector<T>::kWidth;
  const auto at = [](T* from) { return reinterpret_cast<Lanes*>(from); };
  Lanes sum[SETOK_ROWS][2];
  for (auto& row : sum) row[0] = row[1] = Lanes{};
  for (index_t k = 0; k < depth; ++k) {
    const Lanes low = *reinterpret_cast<const Lanes*>(b + k * kPanel);
    const Lanes high = *reinterpret_cast<const Lanes*>(b + k * kPanel + kWidth);
#pragma GCC unroll 8
    for (index_t r = 0; r < SETOK_ROWS; ++r) {
      const T value = a[k * kPanel + r];
      sum[r][0] += value * low;
      sum[r][1] += value * high;
    }
  }
  for (index_t r = 0; r < SETOK_ROWS; ++r) {
    Lanes *left = at(out + r * kPanel), *right = at(out + r * kPanel + kWidth);
    *left = more ? *left + sum[r][0] : sum[r][0];
    *right = more ? *right + sum[r][1] : sum[r][1];
  }
}

template <class T>
void multiply_panels(const T* a, const T* b, index_t dim, T* tile, index_t rows) {
  // Partial sums of kDepth products: rounding errors grow with the depth of a block, not with dim.
  // Deeper blocks are 3 % faster.
  constexpr index_t kDepth = 128;
  for (index_t k = 0; k == 0 || k < dim; k += kDepth) {
    const index_t depth = dim - k < kDepth ? dim - k : kDepth;
    for (index_t r = 0; r < rows; r += SETOK_ROWS)
      for (index_t c = 0; c < kPanel; c += 2 * Vector<T>::kWidth)
        multiply_block(a + k * kPanel + r, b + k * kPanel + c, depth, k > 0, tile + r * kPanel + c);
  }
}

// ||a - b||^2 over fixed lanes: equal numbers give equal bits at every position.
template <class T>
SETOK_INLINE T lane_sum(const T* a, const T* b, index_t dim) {
  T sum[kLanes] = {};
  const index_t whole = dim / kLanes * kLanes;
  for (index_t j = 0; j < whole; j += kLanes) {
#pragma omp simd
    for (index_t lane = 0; lane < kLanes; ++lane) {
      const T apart = a[j + lane] - b[j + lane];
      sum[lane] += apart * apart;
    }
  }
  for (index_t j = whole; j < dim; ++j) {
    const T apart = a[j] - b[j];
    sum[j - whole] += apart * apart;
  }
  for (index_t width = kLanes / 2; width > 0; width /= 2)
    for (index_t lane = 0; lane < width; ++lane) sum[lane] += sum[lane + width];
  return sum[0];
}

template <class T>
void small_distances(const T* x, index_t n, index_t dim, T* out, index_t ld) {
  for (index_t i = 0; i < n; ++i)
    for (index_t j = 0; j <= i; ++j)
      out[i * ld + j] = out[j * ld + i] = lane_sum(x + i * dim, x + j * dim, dim);
}

template <class T>
T squared_distance(const T* a, const T* b, index_t dim) {
  return lane_sum(a, b, dim);
}

}  // namespace
}  // namespace setok::SETOK_ISA
