// Distances from inner products, and nearest neighbours in a distance row.

#pragma once

#include "math.h"
#include "types.h"

namespace setok::SETOK_ISA {
namespace {

// Turns a tile of inner products into distances, and stores them to rows of `to`.
template <class T>
void finish_tile(T* tile, const T* row_norm, const T* column_norm, T* to, index_t ld) {
  for (index_t r = 0; r < kPanel; ++r) {
    T* d = tile + r * kPanel;
    const T own = row_norm[r];
#pragma omp simd
    for (index_t c = 0; c < kPanel; ++c) {
      const T value = (own + column_norm[c]) - 2 * d[c];
      to[r * ld + c] = d[c] = value > 0 ? value : 0;
    }
  }
}

// Upper bound of the k-th smallest: the k-th smallest of the minima of `lanes` groups.
template <class T, index_t lanes>
SETOK_INLINE T bound_over_lanes(const T* row, index_t width, index_t k) {
  T minima[lanes], within[lanes];
  for (index_t lane = 0; lane < lanes; ++lane) minima[lane] = kFar<T>;
  index_t j = 0;
  for (; j + lanes <= width; j += lanes) {
#pragma omp simd
    for (index_t lane = 0; lane < lanes; ++lane)
      minima[lane] = row[j + lane] < minima[lane] ? row[j + lane] : minima[lane];
  }
  for (; j < width; ++j) minima[j % lanes] = min_of(minima[j % lanes], row[j]);
  // Smallest bound with at least k minima within; by counting, without branches.
  for (index_t lane = 0; lane < lanes; ++lane) within[lane] = 0;
  for (index_t other = 0; other < lanes; ++other) {
    const T value = minima[other];
#pragma omp simd
    for (index_t lane = 0; lane < lanes; ++lane)
      within[lane] += value <= minima[lane] ? T{1} : T{0};
  }
  T bound = kFar<T>;
  for (index_t lane = 0; lane < lanes; ++lane)
    bound = within[lane] >= static_cast<T>(k) && minima[lane] < bound ? minima[lane] : bound;
  return bound;
}

template <class T>
T bound_of_nearest(const T* row, index_t width, index_t k) {
  if (k <= 12) return bound_over_lanes<T, 16>(row, width, k);
  return k <= 48 ? bound_over_lanes<T, 64>(row, width, k) : kFar<T>;
}

// Selects the k nearest of at most `room` candidates in ascending order of index, by counting the
// candidates before each. Returns their count.
template <class T, index_t room>
SETOK_INLINE index_t rank_within(const T* row, const int32_t* candidate, index_t count, index_t k,
                                 index_t* knn) {
  T distance[room], before[room], number[room];
  for (index_t c = 0; c < room; ++c) {
    distance[c] = c < count ? row[candidate[c]] : kFar<T>;
    before[c] = 0;
    number[c] = static_cast<T>(c);
  }
  for (index_t other = 0; other < count; ++other) {
    const T value = distance[other], index = number[other];
#pragma omp simd
    for (index_t c = 0; c < room; ++c)
      before[c] +=
          (value < distance[c]) | ((value == distance[c]) & (index < number[c])) ? T{1} : T{0};
  }
  for (index_t c = 0; c < count; ++c) {
    const auto rank = static_cast<index_t>(before[c]);
    if (rank < k) knn[rank] = candidate[c];
  }
  return min_of(count, k);
}

template <class T>
index_t rank_candidates(const T* row, const int32_t* candidate, index_t count, index_t k,
                        index_t* knn) {
  if (count <= 16) return rank_within<T, 16>(row, candidate, count, k, knn);
  return rank_within<T, kRanked>(row, candidate, count, k, knn);
}

}  // namespace
}  // namespace setok::SETOK_ISA
