#include "density.h"

#include <algorithm>
#include <cmath>

#include "old_systems.h"
#include "simd/kernels.h"

namespace setok {
namespace {

// Up to this many features, differences need fewer operations than products.
constexpr index_t kSmall = 1 << 17;

}  // namespace

template <class T>
T local_density(T sum, index_t found, T sigma) {
  // Scaling the sum, not the terms, keeps sums of small integers exact, so ties stay ties.
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
    if (!all_zero) kernels<T>().small_distances(tokens.x, n, dim, distance, ld);
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
    tokens.pack(tokens.x + top * dim, count, panel(p));
    tokens.multiply(panel(p), panel(p), tile, kPanel);
    norms_of_panel(tile, count, norm + top);
    kernels<T>().finish_tile(tile, norm + top, norm + top, distance + top * ld + top, ld);
  });
  parallel_tasks(panels - 1, [&](index_t p) {
    alignas(64) T tile[kPanel * kPanel];
    const index_t top = p * kPanel;
    for (index_t q = p + 1; q < panels; ++q) {
      const index_t left = q * kPanel;
      tokens.multiply(panel(p), panel(q), tile, kPanel);
      kernels<T>().finish_tile(tile, norm + top, norm + left, distance + top * ld + left, ld);
      kernels<T>().transpose_tile(tile, distance + left * ld + top, ld);
    }
  });
}

template <class T>
void norms_of_tokens(const Features<T>& tokens, index_t count, T* norm) {
  const index_t n = tokens.n, dim = tokens.dim;
  std::fill_n(norm, count, kFar<T>);
  parallel_tasks(panels_of(n), [&](index_t p) {
    alignas(64) T tile[kPanel * kPanel];
    T* packed = Scratch::of_this_thread().get<T>(Scratch::tile, kPanel * dim);
    const index_t top = p * kPanel, width = std::min(kPanel, n - top);
    tokens.pack(tokens.x + top * dim, width, packed);
    tokens.multiply(packed, packed, tile, kPanel);
    norms_of_panel(tile, width, norm + top);
  });
}

template <class T>
void distance_rows(const Features<T>& tokens, const T* norm, bool all_zero, const T* x,
                   index_t count, T* distance, index_t ld, Scratch& scratch) {
  const index_t n = tokens.n, dim = tokens.dim, panels = panels_of(count);
  if (all_zero || n * n * dim <= kSmall) {
    for (index_t c = 0; c < count; ++c) {
      T* row = distance + c * ld;
      std::fill(std::fill_n(row, n, T{0}), row + ld, kFar<T>);
      for (index_t i = 0; !all_zero && i < n; ++i)
        row[i] = kernels<T>().squared_distance(x + c * dim, tokens.x + i * dim, dim);
    }
    return;
  }
  T* packed = scratch.get<T>(Scratch::packed, panels * kPanel * dim);
  T* own = scratch.get<T>(Scratch::norm, panels * kPanel);
  const auto panel = [=](index_t p) { return packed + p * kPanel * dim; };
  for (index_t p = 0; p < panels; ++p) {
    alignas(64) T tile[kPanel * kPanel];
    const index_t top = p * kPanel, rows = std::min(kPanel, count - top);
    tokens.pack(x + top * dim, rows, panel(p));
    tokens.multiply(panel(p), panel(p), tile, kPanel);
    norms_of_panel(tile, rows, own + top);
  }
  parallel_tasks(panels_of(n), [&](index_t q) {
    alignas(64) T tile[kPanel * kPanel], computed[kPanel];
    T* columns = Scratch::of_this_thread().get<T>(Scratch::tile, kPanel * dim);
    const index_t left = q * kPanel, width = std::min(kPanel, n - left);
    tokens.pack(tokens.x + left * dim, width, columns);
    if (norm == nullptr) {
      tokens.multiply(columns, columns, tile, kPanel);
      norms_of_panel(tile, width, computed);
    }
    const T* other = norm == nullptr ? computed : norm + left;
    for (index_t p = 0; p < panels; ++p) {
      const index_t top = p * kPanel;
      tokens.multiply(panel(p), columns, tile, std::min(kPanel, count - top));
      kernels<T>().finish_tile(tile, own + top, other, distance + top * ld + left, ld);
    }
  });
}

template <class T>
void nearest_in_row(const T* row, index_t n, index_t i, index_t k, bool include_self, index_t* knn,
                    int32_t* candidate) {
  const index_t width = padded(n), kept = std::min(k, n - (include_self ? 0 : 1));
  // The token itself has distance 0 and occupies one of the minima.
  const T bound = kernels<T>().bound_of_nearest(row, width, kept + (include_self ? 0 : 1));
  const index_t count = kernels<T>().select_within(row, width, bound, candidate);
  index_t some = 0;
  for (index_t c = 0; c < count; ++c) {
    candidate[some] = candidate[c];
    some += candidate[c] < n && (include_self || candidate[c] != i);
  }
  index_t found;
  if (some <= kRanked) {
    found = kernels<T>().rank_candidates(row, candidate, some, kept, knn);
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
template void norms_of_tokens(const Features<float>&, index_t, float*);
template void norms_of_tokens(const Features<double>&, index_t, double*);
template void distance_rows(const Features<float>&, const float*, bool, const float*, index_t,
                            float*, index_t, Scratch&);
template void distance_rows(const Features<double>&, const double*, bool, const double*, index_t,
                            double*, index_t, Scratch&);
template void nearest_in_row(const float*, index_t, index_t, index_t, bool, index_t*, int32_t*);
template void nearest_in_row(const double*, index_t, index_t, index_t, bool, index_t*, int32_t*);

}  // namespace setok
