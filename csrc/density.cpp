#include "density.h"

#include <algorithm>
#include <cmath>

#include "gram.h"
#include "old_systems.h"
#include "select.h"

namespace setok {
namespace {

// A tile of inner products becomes distances, which go to rows of `to`.
template <class T>
SETOK_INLINE void finish(T* tile, const T* row_norm, const T* column_norm, T* to, index_t ld) {
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

// The k nearest of at most `kRanked` candidates in ascending order of index, by counting for each
// how many come before it. Returns how many there are.
template <class T, index_t kRanked>
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

constexpr index_t kRanked = 32;

// So few products are fewer still by the differences.
constexpr index_t kSmall = 1 << 17;

#define SETOK_DENSITY(T)                                                                         \
  SETOK_CLONES void finish_of(T* tile, const T* row_norm, const T* column_norm, T* to,           \
                              index_t ld) {                                                      \
    finish(tile, row_norm, column_norm, to, ld);                                                 \
  }                                                                                              \
  SETOK_CLONES T bound_of(const T* row, index_t width, index_t k) {                              \
    if (k <= 12) return bound_of_nearest<T, 16>(row, width, k);                                  \
    return k <= 48 ? bound_of_nearest<T, 64>(row, width, k) : kFar<T>;                           \
  }                                                                                              \
  SETOK_CLONES index_t rank_of(const T* row, const int32_t* candidate, index_t count, index_t k, \
                               index_t* knn) {                                                   \
    if (count <= 16) return rank_candidates<T, 16>(row, candidate, count, k, knn);               \
    return rank_candidates<T, kRanked>(row, candidate, count, k, knn);                           \
  }
SETOK_DENSITY(float)
SETOK_DENSITY(double)
#undef SETOK_DENSITY

}  // namespace

void finish_tile(float* tile, const float* row_norm, const float* column_norm, float* to,
                 index_t ld) {
  finish_of(tile, row_norm, column_norm, to, ld);
}
void finish_tile(double* tile, const double* row_norm, const double* column_norm, double* to,
                 index_t ld) {
  finish_of(tile, row_norm, column_norm, to, ld);
}

template <class T>
T local_density(T sum, index_t found, T sigma) {
  // Scaling the sum, not the terms, keeps sums of small integers exact and their ties ties.
  const T mean = sum / static_cast<T>(found > 0 ? found : 1), exponent = -sigma * mean;
  return static_cast<T>(std::exp(static_cast<double>(exponent)));
}

template <class T>
void norms_of_panel(const T* tile, index_t count, T* norm) {
  for (index_t r = 0; r < kPanel; ++r) norm[r] = r < count ? tile[r * kPanel + r] : kFar<T>;
}

template <class T>
void distance_matrix(const Features<T>& tokens, bool all_zero, T* distance, index_t ld,
                     Scratch& scratch) {
  const index_t n = tokens.n, dim = tokens.dim, panels = panels_of(n);
  if (all_zero || n * n * dim <= kSmall) {
    if (!all_zero) small_distances(tokens.x, n, dim, distance, ld);
    for (index_t i = 0; i < n; ++i) {
      if (all_zero) std::fill_n(distance + i * ld, n, T{0});
      std::fill(distance + i * ld + n, distance + (i + 1) * ld, kFar<T>);
    }
    return;
  }
  T* packed = scratch.get<T>(Scratch::packed, panels * kPanel * dim);
  T* norm = scratch.get<T>(Scratch::norm, panels * kPanel);
  const auto panel = [=](index_t p) { return packed + p * kPanel * dim; };
  parallel_tasks(panels, [&](index_t p) {
    alignas(64) T tile[kPanel * kPanel];
    const index_t top = p * kPanel, count = std::min(kPanel, n - top);
    pack_panel(tokens.x + top * dim, dim, count, dim, panel(p));
    multiply_panels(panel(p), panel(p), dim, tile);
    norms_of_panel(tile, count, norm + top);
    finish_of(tile, norm + top, norm + top, distance + top * ld + top, ld);
  });
  parallel_tasks(panels - 1, [&](index_t p) {
    alignas(64) T tile[kPanel * kPanel];
    const index_t top = p * kPanel;
    for (index_t q = p + 1; q < panels; ++q) {
      const index_t left = q * kPanel;
      multiply_panels(panel(p), panel(q), dim, tile);
      finish_of(tile, norm + top, norm + left, distance + top * ld + left, ld);
      transpose_tile(tile, distance + left * ld + top, ld);
    }
  });
}

template <class T>
void distance_rows(const Features<T>& tokens, bool all_zero, const T* x, index_t count, T* distance,
                   index_t ld, Scratch& scratch) {
  const index_t n = tokens.n, dim = tokens.dim, panels = panels_of(count);
  if (all_zero || n * n * dim <= kSmall) {
    for (index_t c = 0; c < count; ++c) {
      T* row = distance + c * ld;
      std::fill(std::fill_n(row, n, T{0}), row + ld, kFar<T>);
      for (index_t i = 0; !all_zero && i < n; ++i)
        row[i] = squared_distance(x + c * dim, tokens.x + i * dim, dim);
    }
    return;
  }
  T* packed = scratch.get<T>(Scratch::packed, panels * kPanel * dim);
  T* norm = scratch.get<T>(Scratch::norm, panels * kPanel);
  const auto panel = [=](index_t p) { return packed + p * kPanel * dim; };
  for (index_t p = 0; p < panels; ++p) {
    alignas(64) T tile[kPanel * kPanel];
    const index_t top = p * kPanel, rows = std::min(kPanel, count - top);
    pack_panel(x + top * dim, dim, rows, dim, panel(p));
    multiply_panels(panel(p), panel(p), dim, tile);
    norms_of_panel(tile, rows, norm + top);
  }
  parallel_tasks(panels_of(n), [&](index_t q) {
    alignas(64) T tile[kPanel * kPanel], own[kPanel];
    T* columns = Scratch::of_this_thread().get<T>(Scratch::tile, kPanel * dim);
    const index_t left = q * kPanel, width = std::min(kPanel, n - left);
    pack_panel(tokens.x + left * dim, dim, width, dim, columns);
    multiply_panels(columns, columns, dim, tile);
    norms_of_panel(tile, width, own);
    for (index_t p = 0; p < panels; ++p) {
      const index_t top = p * kPanel;
      multiply_panels(panel(p), columns, dim, tile, std::min(kPanel, count - top));
      finish_of(tile, norm + top, own, distance + top * ld + left, ld);
    }
  });
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
template void norms_of_panel(const float*, index_t, float*);
template void norms_of_panel(const double*, index_t, double*);
template void distance_matrix(const Features<float>&, bool, float*, index_t, Scratch&);
template void distance_matrix(const Features<double>&, bool, double*, index_t, Scratch&);
template void distance_rows(const Features<float>&, bool, const float*, index_t, float*, index_t,
                            Scratch&);
template void distance_rows(const Features<double>&, bool, const double*, index_t, double*, index_t,
                            Scratch&);
template void nearest_in_row(const float*, index_t, index_t, index_t, bool, index_t*, int32_t*);
template void nearest_in_row(const double*, index_t, index_t, index_t, bool, index_t*, int32_t*);

}  // namespace setok
