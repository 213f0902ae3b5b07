#include "density.h"

#include <algorithm>
#include <cmath>

#include "gram.h"

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
  T least[lanes];
  for (index_t lane = 0; lane < lanes; ++lane) least[lane] = kFar<T>;
  index_t j = 0;
  for (; j + lanes <= width; j += lanes) {
#pragma omp simd
    for (index_t lane = 0; lane < lanes; ++lane)
      least[lane] = row[j + lane] < least[lane] ? row[j + lane] : least[lane];
  }
  for (; j < width; ++j) least[j % lanes] = std::min(least[j % lanes], row[j]);
  std::nth_element(least, least + k - 1, least + lanes);
  return least[k - 1];
}

// Tokens within `bound`, in ascending order; a vector comparison passes over the others.
template <class T>
SETOK_INLINE void collect(const T* row, index_t n, index_t width, index_t self, T bound,
                          Nearest<T>& nearest) {
  for (index_t block = 0; block < width; block += kLanes) {
    int any = 0;
#pragma omp simd reduction(| : any)
    for (index_t lane = 0; lane < kLanes; ++lane) any |= row[block + lane] <= bound;
    if (any == 0) continue;
    const index_t end = std::min(block + kLanes, n);
    for (index_t j = block; j < end; ++j) {
      if (row[j] > bound || j == self) continue;
      nearest.insert(row[j], j);
      if (nearest.found == nearest.k) bound = std::min(bound, nearest.distance[nearest.k - 1]);
    }
  }
}

template <class T>
SETOK_INLINE void row_neighbours(const T* row, index_t n, index_t self, Nearest<T>& nearest) {
  const index_t width = padded(n);
  // The token itself is at distance 0 and takes a place among the minima.
  const index_t k = nearest.k + (self >= 0 ? 1 : 0);
  T bound = kFar<T>;
  if (k <= 12)
    bound = bound_of_nearest<T, 16>(row, width, k);
  else if (k <= 48)
    bound = bound_of_nearest<T, 64>(row, width, k);
  collect(row, n, width, self, bound, nearest);
}

#define SETOK_DENSITY(T)                                                                       \
  SETOK_CLONES void finish_block_of(T* gram, index_t ld, index_t top, const T* norm,           \
                                    index_t width) {                                           \
    finish_block(gram, ld, top, norm, width);                                                  \
  }                                                                                            \
  SETOK_CLONES void row_neighbours_of(const T* row, index_t n, index_t self,                   \
                                      Nearest<T>& nearest) {                                   \
    row_neighbours(row, n, self, nearest);                                                     \
  }                                                                                            \
  SETOK_CLONES void finish_row_of(T* row, T norm_i, const T* norm, index_t count) {            \
    finish(row, norm_i, norm, count);                                                          \
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
void nearest_in_row(const T* row, index_t n, index_t i, index_t k, bool include_self,
                    index_t* knn) {
  constexpr index_t kOnStack = 64;
  T distance[kOnStack];
  index_t index[kOnStack];
  const index_t kept = std::min(k, n - (include_self ? 0 : 1));
  std::unique_ptr<T[]> more_distance;
  std::unique_ptr<index_t[]> more_index;
  if (kept > kOnStack) {
    more_distance = std::make_unique<T[]>(kept);
    more_index = std::make_unique<index_t[]>(kept);
  }
  Nearest<T> nearest{kept > kOnStack ? more_distance.get() : distance,
                     kept > kOnStack ? more_index.get() : index, kept, 0};
  if (kept > 0) row_neighbours_of(row, n, include_self ? -1 : i, nearest);
  std::copy_n(nearest.index, nearest.found, knn);
  std::fill(knn + nearest.found, knn + k, index_t{-1});
}

template float local_density(float, index_t, float);
template double local_density(double, index_t, double);
template void distance_matrix(const Features<float>&, bool, float*, index_t, Scratch&);
template void distance_matrix(const Features<double>&, bool, double*, index_t, Scratch&);
template void nearest_in_row(const float*, index_t, index_t, index_t, bool, index_t*);
template void nearest_in_row(const double*, index_t, index_t, index_t, bool, index_t*);

}  // namespace setok
