#include "density.h"

#include <algorithm>
#include <cmath>

#include "gram.h"
#include "select.h"

namespace setok {
namespace {

template <class T>
SETOK_INLINE void finish(T* row, T norm_i, const T* norm, index_t count) {
#pragma omp simd
  for (index_t j = 0; j < count; ++j) {
    const T d = (norm_i + norm[j]) - 2 * row[j];
    row[j] = d > 0 ? d : 0;
  }
}

// Inner products become distances in a block of rows, from its diagonal block on; the block is
// written to its mirror image as well.
template <class T>
SETOK_INLINE void finish_block(T* gram, index_t ld, index_t top, const T* norm, index_t width) {
  for (index_t r = 0; r < kLanes; ++r)
    finish(gram + (top + r) * ld + top, norm[top + r], norm + top, width - top);
  T* corner = gram + top * ld + top;
  for (index_t r = 0; r < kLanes; ++r) {
    corner[r * ld + r] = 0;
    for (index_t c = r + 1; c < kLanes; ++c) corner[c * ld + r] = corner[r * ld + c];
  }
  for (index_t left = top + kLanes; left < width; left += kLanes) {
    T tile[kLanes][kLanes];
    for (index_t r = 0; r < kLanes; ++r) {
#pragma omp simd
      for (index_t c = 0; c < kLanes; ++c) tile[r][c] = gram[(top + r) * ld + left + c];
    }
    for (index_t c = 0; c < kLanes; ++c) {
#pragma omp simd
      for (index_t r = 0; r < kLanes; ++r) gram[(left + c) * ld + top + r] = tile[r][c];
    }
  }
}

// Upper bound of the k-th smallest: the k-th smallest of the minima of `lanes` groups.
template <class T, index_t lanes>
SETOK_INLINE T bound_of_nearest(const T* row, index_t width, index_t k) {
  T least[lanes], within[lanes];
  for (index_t lane = 0; lane < lanes; ++lane) least[lane] = kFar<T>;
  index_t j = 0;
  for (; j + lanes <= width; j += lanes) {
#pragma omp simd
    for (index_t lane = 0; lane < lanes; ++lane)
      least[lane] = row[j + lane] < least[lane] ? row[j + lane] : least[lane];
  }
  for (; j < width; ++j) least[j % lanes] = std::min(least[j % lanes], row[j]);
  // The smallest minimum that at least k of them are within; counted, not sorted: no branches.
  for (index_t lane = 0; lane < lanes; ++lane) within[lane] = 0;
  for (index_t other = 0; other < lanes; ++other) {
    const T value = least[other];
#pragma omp simd
    for (index_t lane = 0; lane < lanes; ++lane) within[lane] += value <= least[lane] ? T{1} : T{0};
  }
  T bound = kFar<T>;
  for (index_t lane = 0; lane < lanes; ++lane)
    bound = within[lane] >= static_cast<T>(k) && least[lane] < bound ? least[lane] : bound;
  return bound;
}

constexpr index_t kRanked = 32;

// The k nearest of at most kRanked candidates in ascending order of index, by counting for each
// how many come before it. Returns how many there are.
template <class T>
SETOK_INLINE index_t rank_candidates(const T* row, const int32_t* candidate, index_t count,
                                     index_t k, index_t* knn) {
  T distance[kRanked], before[kRanked], number[kRanked];
  for (index_t c = 0; c < kRanked; ++c) {
    distance[c] = c < count ? row[candidate[c]] : kFar<T>;
    before[c] = 0;
    number[c] = static_cast<T>(c);
  }
  for (index_t other = 0; other < count; ++other) {
    const T value = distance[other], place = number[other];
#pragma omp simd
    for (index_t c = 0; c < kRanked; ++c)
      before[c] +=
          (value < distance[c]) | ((value == distance[c]) & (place < number[c])) ? T{1} : T{0};
  }
  for (index_t c = 0; c < count; ++c) {
    const auto rank = static_cast<index_t>(before[c]);
    if (rank < k) knn[rank] = candidate[c];
  }
  return std::min(count, k);
}

#define SETOK_DENSITY(T)                                                                         \
  SETOK_CLONES void finish_block_of(T* gram, index_t ld, index_t top, const T* norm,             \
                                    index_t width) {                                             \
    finish_block(gram, ld, top, norm, width);                                                    \
  }                                                                                              \
  SETOK_CLONES T bound_of(const T* row, index_t width, index_t k) {                              \
    if (k <= 12) return bound_of_nearest<T, 16>(row, width, k);                                  \
    return k <= 48 ? bound_of_nearest<T, 64>(row, width, k) : kFar<T>;                           \
  }                                                                                              \
  SETOK_CLONES index_t rank_of(const T* row, const int32_t* candidate, index_t count, index_t k, \
                               index_t* knn) {                                                   \
    return rank_candidates(row, candidate, count, k, knn);                                       \
  }                                                                                              \
  SETOK_CLONES void finish_row_of(T* row, T norm_i, const T* norm, index_t count) {              \
    finish(row, norm_i, norm, count);                                                            \
  }
SETOK_DENSITY(float)
SETOK_DENSITY(double)
#undef SETOK_DENSITY

// Equal tokens are equally far from everything, whatever the matrix product rounded them to.
template <class T>
void copy_equal(const Features<T>& tokens, T* distance, index_t ld) {
  for (index_t i = 0; i < tokens.n; ++i) {
    const index_t j = tokens.first[i];
    if (j == i) continue;
    std::copy_n(distance + j * ld, tokens.n, distance + i * ld);
    for (index_t r = 0; r < tokens.n; ++r) distance[r * ld + i] = distance[r * ld + j];
  }
}

}  // namespace

void finish_row(float* row, float norm_i, const float* norm, index_t count) {
  finish_row_of(row, norm_i, norm, count);
}
void finish_row(double* row, double norm_i, const double* norm, index_t count) {
  finish_row_of(row, norm_i, norm, count);
}

template <class T>
T local_density(T sum, index_t found, T sigma) {
  // Scaling the sum, not the terms, keeps sums of small integers exact and their ties ties.
  const T mean = sum / static_cast<T>(found > 0 ? found : 1), exponent = -sigma * mean;
  return static_cast<T>(std::exp(static_cast<double>(exponent)));
}

template <class T>
void distance_matrix(const Features<T>& tokens, bool all_zero, T* distance, index_t ld,
                     Scratch& scratch) {
  const index_t n = tokens.n, width = padded(n);
  if (n == 0) return;
  // Below this the call of a matrix product costs more than the product.
  constexpr index_t kSmall = 1 << 17;
  if (!all_zero && n * n * tokens.dim <= kSmall) {
    small_distances(tokens.x, n, tokens.dim, distance, ld);
  } else if (!all_zero) {
    upper_gram(tokens.x, n, tokens.dim, distance, ld);
    // The norms are the diagonal of the same product.
    T* norm = scratch.get<T>(Scratch::norm, width);
    for (index_t i = 0; i < n; ++i) norm[i] = distance[i * ld + i];
    std::fill(norm + n, norm + width, T{0});
    const index_t block = n <= 64 ? width : kLanes;
    parallel_blocks(width, block, [&](index_t begin, index_t end) {
      for (index_t top = begin; top < end; top += kLanes)
        finish_block_of(distance, ld, top, norm, width);
    });
    if (tokens.first != nullptr) copy_equal(tokens, distance, ld);
  }
  for (index_t i = 0; i < n; ++i) {
    if (all_zero) std::fill_n(distance + i * ld, n, T{0});
    std::fill(distance + i * ld + n, distance + i * ld + width, kFar<T>);
  }
}

template <class T>
void nearest_in_row(const T* row, index_t n, index_t i, index_t k, bool include_self, index_t* knn,
                    int32_t* candidate) {
  const index_t width = padded(n), kept = std::min(k, n - (include_self ? 0 : 1));
  // The token itself is at distance 0 and takes a place among the minima.
  const T bound = bound_of(row, width, kept + (include_self ? 0 : 1));
  const index_t count = select_within(row, width, bound, candidate);
  index_t some = 0;
  for (index_t c = 0; c < count; ++c) {
    candidate[some] = candidate[c];
    some += candidate[c] < n && (include_self || candidate[c] != i);
  }
  index_t found;
  if (some <= kRanked) {
    found = rank_of(row, candidate, some, kept, knn);
  } else {
    const auto nearer = [row](int32_t a, int32_t b) {
      return Nearest<T>::before(row[a], a, row[b], b);
    };
    found = std::min(kept, some);
    std::partial_sort(candidate, candidate + found, candidate + some, nearer);
    std::copy_n(candidate, found, knn);
  }
  std::fill(knn + found, knn + k, index_t{-1});
}

template float local_density(float, index_t, float);
template double local_density(double, index_t, double);
template void distance_matrix(const Features<float>&, bool, float*, index_t, Scratch&);
template void distance_matrix(const Features<double>&, bool, double*, index_t, Scratch&);
template void nearest_in_row(const float*, index_t, index_t, index_t, bool, index_t*, int32_t*);
template void nearest_in_row(const double*, index_t, index_t, index_t, bool, index_t*, int32_t*);

}  // namespace setok
