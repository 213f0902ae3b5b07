// Operations `setok::merge` and `setok::unmerge`: weighted means of the tokens of each cluster, and
// the transpose.

#include <algorithm>
#include <cmath>
#include <vector>

#include "checks.h"
#include "columns.h"
#include "operators.h"
#include "simd/kernels.h"
#include "tensors.h"

namespace setok {
namespace {

// Members are added in ascending order, so the sum depends only on them.
template <class T>
void merge_members(const T* x, const index_t* labels, const T* weights, index_t tokens, index_t dim,
                   index_t rows, T* out) {
  std::vector<T> mass(rows, T{0});
  std::fill_n(out, rows * dim, T{0});
  for (index_t i = 0; i < tokens; ++i) {
    if (labels[i] < 0 || !kernels<T>().is_finite(x + i * dim, dim)) continue;
    const T weight = weights == nullptr ? T{1} : weights[i];
    kernels<T>().accumulate(out + labels[i] * dim, x + i * dim, weight, dim);
    mass[labels[i]] += weight;
  }
  for (index_t row = 0; row < rows; ++row) {
    if (!(mass[row] > 0)) continue;
    for (index_t j = 0; j < dim; ++j) out[row * dim + j] /= mass[row];
  }
}

// Coefficients of the tokens in each row as panels, packed[(p * tokens + i) * kPanel + row], and
// their sums; only `usable` tokens may be read.
template <class T>
void pack_coefficients(const T* x, const T* masks, index_t mask_stride, const index_t* labels,
                       const T* weights, index_t tokens, index_t dim, index_t rows, T* packed,
                       T* mass, bool* usable) {
  parallel_blocks(tokens, 64, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i)
      usable[i] = labels[i] >= 0 && kernels<T>().is_finite(x + i * dim, dim);
  });
  parallel_tasks(panels_of(rows), [&](index_t p) {
    const index_t top = p * kPanel, count = std::min(kPanel, rows - top);
    T *panel = packed + top * tokens, *sum = mass + top;
    kernels<T>().pack_panel(masks + top * mask_stride, mask_stride, count, tokens, panel);
    std::fill_n(sum, kPanel, T{0});
    for (index_t i = 0; i < tokens; ++i, panel += kPanel) {
      const T weight = !usable[i] ? T{0} : weights == nullptr ? T{1} : weights[i];
      for (index_t r = 0; r < kPanel; ++r) sum[r] += panel[r] *= weight;
    }
  });
}

// out (rows, dim) = sum_i w_i M_ci x_i / (sum_i w_i M_ci + eps); masks (rows, tokens).
template <class T>
void merge_masks(const T* x, const T* masks, index_t mask_stride, const index_t* labels,
                 const T* weights, index_t tokens, index_t dim, index_t rows, T eps, T* out) {
  Scratch& scratch = Scratch::of_this_thread();
  const index_t panels = panels_of(rows);
  T* coefs = scratch.get<T>(Scratch::packed, panels * kPanel * tokens);
  T* mass = scratch.get<T>(Scratch::row, panels * kPanel);
  bool* usable = scratch.get<bool>(Scratch::finite, tokens);
  pack_coefficients(x, masks, mask_stride, labels, weights, tokens, dim, rows, coefs, mass, usable);
  // Rows after the residual are empty, and usually there are many.
  index_t used = rows;
  while (used > 0 && !(mass[used - 1] != 0)) --used;
  std::fill(out + used * dim, out + rows * dim, T{0});
  multiply_coefficients(coefs, x, usable, tokens, dim, used, out);
  for (index_t row = 0; row < used; ++row) {
    const T divisor = mass[row] + eps;
    for (index_t j = 0; j < dim; ++j) out[row * dim + j] /= divisor;
  }
}

// x (..., D) and weights in float32 or float64, labels (...); (B, rows, D).
Tensor merge_hard(const Tensor& x, const Tensor& labels, const Tensor* weights,
                  const Layout& layout, index_t rows) {
  const index_t dim = x.size(-1);
  Tensor out = empty_cpu({layout.images(), rows, dim}, x.scalar_type());
  for_type_of(x, [&](auto zero) {
    using T = decltype(zero);
    parallel_tasks(layout.images(), [&](index_t b) {
      const index_t start = layout.start[b];
      merge_members(values<T>(x) + start * dim, values<index_t>(labels) + start,
                    values<T>(weights, start), layout.tokens(b), dim, rows,
                    data<T>(out) + b * rows * dim);
    });
  });
  return out;
}

// Like merge_hard, with masks (B, rows, N) or (rows, T) in the dtype of x.
Tensor merge_soft(const Tensor& x, const Tensor& masks, const Tensor& labels, const Tensor* weights,
                  const Layout& layout, double eps) {
  const index_t dim = x.size(-1), rows = masks.size(-2);
  Tensor out = empty_cpu({layout.images(), rows, dim}, x.scalar_type());
  for_type_of(x, [&](auto zero) {
    using T = decltype(zero);
    parallel_images(layout.images(), [&](index_t b) {
      const index_t start = layout.start[b];
      merge_masks(values<T>(x) + start * dim, values<T>(masks) + layout.mask_offset(b, rows),
                  layout.mask_stride(b), values<index_t>(labels) + start, values<T>(weights, start),
                  layout.tokens(b), dim, rows, static_cast<T>(eps), data<T>(out) + b * rows * dim);
    });
  });
  return out;
}

// tokens (B, rows, D) and masks in float32 or float64, labels (...); (..., D).
Tensor unmerge_soft(const Tensor& tokens, const Tensor& masks, const Tensor& labels,
                    const Layout& layout) {
  const index_t dim = tokens.size(-1), rows = masks.size(-2);
  Tensor out = empty_cpu(feature_shape(labels, dim), tokens.scalar_type());
  for_type_of(tokens, [&](auto zero) {
    using T = decltype(zero);
    parallel_images(layout.images(), [&](index_t b) {
      unmerge_masks(values<T>(tokens) + b * rows * dim,
                    values<T>(masks) + layout.mask_offset(b, rows), layout.mask_stride(b),
                    layout.tokens(b), dim, rows, data<T>(out) + layout.start[b] * dim);
    });
  });
  return out;
}

// Like unmerge_soft, without masks.
Tensor unmerge_hard(const Tensor& tokens, const Tensor& labels, const Layout& layout) {
  const index_t dim = tokens.size(-1);
  Tensor out = empty_cpu(feature_shape(labels, dim), tokens.scalar_type());
  const Dtype dtype = dtype_of(tokens);
  const index_t width = dim * static_cast<index_t>(bytes_of(dtype));
  const auto* from = static_cast<const char*>(tokens.const_data_ptr());
  const auto* label = static_cast<const index_t*>(labels.const_data_ptr());
  auto* to = static_cast<char*>(out.mutable_data_ptr());
  for (index_t b = 0; b < layout.images(); ++b) {
    const char* rows = from + b * tokens.size(1) * width;
    const index_t start = layout.start[b];
    parallel_blocks(layout.tokens(b), 256, [&](index_t begin, index_t end) {
      for (index_t i = start + begin; i < start + end; ++i) {
        if (label[i] < 0)
          std::fill_n(to + i * width, width, char{0});
        else
          std::copy_n(rows + label[i] * width, width, to + i * width);
      }
    });
  }
  return out;
}

}  // namespace

// Soft if masks are given, else hard.
Tensor merge(const Tensor& x, const Tensor* masks, const Tensor& labels, const Tensor& counts,
             const Tensor* weights, const Tensor* cu_seqlens, int64_t max_seqlen, int64_t rows,
             double eps) {
  const Members members{labels, counts, masks, weights, cu_seqlens, max_seqlen, rows};
  const Layout layout = check_members(members, wide_of(x));
  check_merged(x, labels);
  check_at_least("eps", eps, 0);
  if (!masks) return merge_hard(x, labels, weights, layout, rows);
  return merge_soft(x, *masks, labels, weights, layout, eps);
}

Tensor unmerge(const Tensor& tokens, const Tensor* masks, const Tensor& labels,
               const Tensor& counts, const Tensor* cu_seqlens, int64_t max_seqlen) {
  const Layout layout = check_spread(tokens, labels, counts, masks, cu_seqlens, max_seqlen);
  if (!masks) return unmerge_hard(tokens, labels, layout);
  return unmerge_soft(tokens, *masks, labels, layout);
}

}  // namespace setok
