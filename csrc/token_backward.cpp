#include "token_backward.h"

#include <algorithm>

#include "columns.h"
#include "simd/kernels.h"

namespace setok {
namespace {

// Computes sum_i G_ci y_i (count, dim) and sum_i G_ci (count,).
template <class T>
struct SeedSums {
  T *products, *totals;
};

template <class T>
SeedSums<T> sum_over_tokens(const Features<T>& tokens, const Seeds<T>& seeds) {
  Scratch& scratch = Scratch::of_this_thread();
  const index_t n = tokens.n, dim = tokens.dim, count = seeds.count();
  T* products = scratch.get<T>(Scratch::products, count * (dim + 1));
  SeedSums<T> out{products, products + count * dim};
  T* packed = scratch.get<T>(Scratch::packed, panels_of(count) * kPanel * n);
  parallel_tasks(panels_of(count), [&](index_t p) {
    const index_t top = p * kPanel, rows = std::min(kPanel, count - top);
    kernels<T>().pack_panel(seeds.distance + top * seeds.ld, seeds.ld, rows, n, packed + top * n);
    for (index_t c = top; c < top + rows; ++c) {
      double total = 0;
      for (index_t i = 0; i < n; ++i)
        total += static_cast<double>(seeds.distance[c * seeds.ld + i]);
      out.totals[c] = static_cast<T>(total);
    }
  });
  const bool* all = nullptr;
  multiply_coefficients(packed, tokens.x, all, n, dim, count, out.products);
  return out;
}

// Adds r_i y_i - sum_c G_ci y_c to the tokens of a panel, and to the seeds among them the
// contributions of the other tokens.
template <class T>
void add_seed_gradients(const Features<T>& tokens, const Seeds<T>& seeds, const T* columns,
                        const SeedSums<T>& sums, index_t top, index_t rows, T* sum) {
  alignas(64) T tile[kPanel * kPanel];
  const index_t dim = tokens.dim, count = seeds.count();
  T* coefs = Scratch::of_this_thread().get<T>(Scratch::tile, kPanel * (count + dim));
  T* products = coefs + kPanel * count;
  double total[kPanel] = {};
  for (index_t c = 0; c < count; ++c) {
    const T* from = seeds.distance + c * seeds.ld + top;
    std::copy_n(from, kPanel, coefs + c * kPanel);
    for (index_t r = 0; r < rows; ++r) total[r] += static_cast<double>(from[r]);
  }
  for (index_t left = 0; left < dim; left += kPanel) {
    kernels<T>().multiply_panels(coefs, columns + left * count, count, tile, rows);
    store_columns(tile, rows, left, products, dim);
  }
  for (index_t r = 0; r < rows; ++r)
    kernels<T>().add_scaled(static_cast<T>(total[r]), tokens.x + (top + r) * dim,
                            products + r * dim, dim, sum + r * dim);
  for (index_t c = 0; c < count; ++c) {
    const index_t r = seeds.token[c] - top;
    if (r >= 0 && r < rows)
      kernels<T>().add_scaled(sums.totals[c], seeds.x + c * dim, sums.products + c * dim, dim,
                              sum + r * dim);
  }
}

// Writes one token of the result, rounded to the dtype of the image.
template <class T>
void store_token(const ImageInput& image, const Features<T>& tokens, const T* from, index_t i,
                 void* grad_x) {
  const index_t dim = tokens.dim, at = tokens.position_of(i) * dim;
  if constexpr (sizeof(T) == 4) {
    if (image.dtype != Dtype::f32) {
      kernels<T>().narrow(from, image.dtype == Dtype::f16, static_cast<uint16_t*>(grad_x) + at,
                          dim);
      return;
    }
  }
  std::copy_n(from, dim, static_cast<T*>(grad_x) + at);
}

}  // namespace

template <class T>
void token_gradients(const ImageInput& image, const Features<T>& tokens, const Seeds<T>& seeds,
                     const Edges<T>& edges, void* grad_x) {
  Scratch& scratch = Scratch::of_this_thread();
  const index_t n = tokens.n, dim = tokens.dim, count = seeds.count();
  SeedSums<T> sums{nullptr, nullptr};
  T* columns = nullptr;
  if (count > 0) {
    const bool* all = nullptr;
    sums = sum_over_tokens(tokens, seeds);
    columns = scratch.get<T>(Scratch::columns, panels_of(dim) * kPanel * count);
    for (index_t left = 0; left < dim; left += kPanel)
      copy_columns(seeds.x, all, count, dim, left, columns + left * count);
  }
  parallel_tasks(panels_of(n), [&](index_t p) {
    const index_t top = p * kPanel, rows = std::min(kPanel, n - top);
    T* sum = Scratch::of_this_thread().get<T>(Scratch::output, kPanel * dim);
    for (index_t i = top; i < top + rows; ++i) {
      const index_t begin = edges.start[i];
      kernels<T>().sum_differences(tokens.x, dim, i, edges.partner + begin, edges.weight + begin,
                                   edges.start[i + 1] - begin, sum + (i - top) * dim);
    }
    if (count > 0) add_seed_gradients(tokens, seeds, columns, sums, top, rows, sum);
    for (index_t r = 0; r < rows; ++r) store_token(image, tokens, sum + r * dim, top + r, grad_x);
  });
}

#define SETOK_INSTANTIATE(T)                                                            \
  template void token_gradients(const ImageInput&, const Features<T>&, const Seeds<T>&, \
                                const Edges<T>&, void*);
SETOK_INSTANTIATE(float)
SETOK_INSTANTIATE(double)

}  // namespace setok
