// Operations `setok::merge_backward` and `setok::unmerge_backward`.

#include <algorithm>
#include <vector>

#include "checks.h"
#include "columns.h"
#include "operators.h"
#include "simd/kernels.h"
#include "tensors.h"

namespace setok {
namespace {

// Number of tokens of a block in a sum over the rows.
constexpr index_t kBlock = 256;

// Operands of one image; masks and their gradients have `rows` rows `mask_stride` apart.
template <class T>
struct Merge {
  const T *grad, *x, *masks;  // masks are null for a hard merge
  const index_t* labels;
  const T* weights;  // null if all are 1
  index_t tokens, dim, rows, mask_stride;
  T eps;
  T *grad_x, *grad_masks, *grad_weights;  // null if not needed, except grad_x
};

// Finds the usable tokens, and the weight of each token, 0 if not usable.
template <class T>
void find_token_weights(const Merge<T>& m, bool* usable, T* token_weight) {
  parallel_blocks(m.tokens, 64, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      usable[i] = m.labels[i] >= 0 && kernels<T>().is_finite(m.x + i * m.dim, m.dim);
      token_weight[i] = !usable[i] ? T{0} : m.weights == nullptr ? T{1} : m.weights[i];
    }
  });
}

template <class T>
void merge_masks_backward(const Merge<T>& m) {
  Scratch& scratch = Scratch::of_this_thread();
  const index_t tokens = m.tokens, dim = m.dim, rows = m.rows;
  bool* usable = scratch.get<bool>(Scratch::finite, tokens);
  T* token_weight = scratch.get<T>(Scratch::vectors, tokens);
  find_token_weights(m, usable, token_weight);
  // Gradient of each row, divided by its mass like the row.
  T* scaled = scratch.get<T>(Scratch::seeds, rows * dim);
  double* mass = scratch.get<double>(Scratch::totals, 2 * rows);
  double* shift = mass + rows;
  parallel_tasks(rows, [&](index_t row) {
    mass[row] = kernels<T>().product(m.masks + row * m.mask_stride, token_weight, tokens) +
                static_cast<double>(m.eps);
    for (index_t j = 0; j < dim; ++j)
      scaled[row * dim + j] = m.grad[row * dim + j] / static_cast<T>(mass[row]);
  });
  unmerge_masks(scaled, m.masks, m.mask_stride, tokens, dim, rows, m.grad_x);
  // Gradient of a token's weight over all rows, in one product. If the mass is hardly more than
  // eps, the terms of single rows may be so large that their rounding errors exceed the sum.
  const bool masks_wanted = m.grad_masks != nullptr, weights_wanted = m.grad_weights != nullptr;
  double* of_weight = scratch.get<double>(Scratch::weights, tokens);
  parallel_blocks(tokens, kBlock, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      T* row = m.grad_x + i * dim;
      of_weight[i] =
          usable[i] && weights_wanted ? kernels<T>().product(row, m.x + i * dim, dim) : 0;
      if (!usable[i])
        std::fill_n(row, dim, T{0});
      else if (m.weights != nullptr)
        for (index_t j = 0; j < dim; ++j) row[j] *= token_weight[i];
    }
  });
  if (!masks_wanted && !weights_wanted) return;

  // Product of each row's gradient with (token - mean of the row).
  T* gain = masks_wanted ? m.grad_masks : scratch.get<T>(Scratch::distances, rows * tokens);
  const index_t ld = masks_wanted ? m.mask_stride : tokens;
  row_products(scaled, m.x, usable, rows, tokens, dim, gain, ld);
  parallel_tasks(rows, [&](index_t row) {
    shift[row] = kernels<T>().product_of_three(m.masks + row * m.mask_stride, token_weight,
                                               gain + row * ld, tokens) /
                 mass[row];
  });
  parallel_blocks(tokens, kBlock, [&](index_t begin, index_t end) {
    for (index_t row = 0; row < rows; ++row) {
      const T *mask = m.masks + row * m.mask_stride, mean = static_cast<T>(shift[row]);
      T* to = gain + row * ld;
      for (index_t i = begin; i < end; ++i) {
        of_weight[i] -= static_cast<double>(mask[i]) * shift[row];
        to[i] = (to[i] - mean) * token_weight[i];
      }
    }
    for (index_t i = begin; weights_wanted && i < end; ++i)
      m.grad_weights[i] = usable[i] ? static_cast<T>(of_weight[i]) : T{0};
  });
}

template <class T>
void merge_members_backward(const Merge<T>& m) {
  Scratch& scratch = Scratch::of_this_thread();
  const index_t tokens = m.tokens, dim = m.dim, rows = m.rows;
  bool* usable = scratch.get<bool>(Scratch::finite, tokens);
  T* token_weight = scratch.get<T>(Scratch::vectors, tokens);
  find_token_weights(m, usable, token_weight);
  std::vector<double> mass(rows, 0.0), mean(rows, 0.0);
  for (index_t i = 0; i < tokens; ++i)
    if (usable[i]) mass[m.labels[i]] += static_cast<double>(token_weight[i]);
  // A row without mass is not divided.
  const auto divisor = [&](index_t row) { return mass[row] > 0 ? mass[row] : 1.0; };
  parallel_blocks(tokens, kBlock, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      T* to = m.grad_x + i * dim;
      std::fill_n(to, dim, T{0});
      if (usable[i])
        kernels<T>().accumulate(
            to, m.grad + m.labels[i] * dim,
            static_cast<T>(static_cast<double>(token_weight[i]) / divisor(m.labels[i])), dim);
    }
  });
  if (m.grad_weights == nullptr) return;
  double* gain = scratch.get<double>(Scratch::weights, tokens);
  parallel_blocks(tokens, kBlock, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i)
      gain[i] =
          !usable[i] ? 0 : kernels<T>().product(m.grad + m.labels[i] * dim, m.x + i * dim, dim);
  });
  for (index_t i = 0; i < tokens; ++i)
    if (usable[i] && mass[m.labels[i]] > 0)
      mean[m.labels[i]] += static_cast<double>(token_weight[i]) * gain[i] / mass[m.labels[i]];
  for (index_t i = 0; i < tokens; ++i) {
    const index_t row = usable[i] ? m.labels[i] : 0;
    m.grad_weights[i] = usable[i] ? static_cast<T>((gain[i] - mean[row]) / divisor(row)) : T{0};
  }
}

}  // namespace

// grad (B, rows, D), x (..., D), masks (B, rows, N) or (rows, T) and weights (...) in float32 or
// float64; without masks the gradients of `merge_hard`. Gradients that are not needed are empty.
std::array<Tensor, 3> merge_backward(const Tensor& grad, const Tensor& x, const Tensor* masks,
                                     const Tensor& labels, const Tensor& counts,
                                     const Tensor* weights, const Tensor* cu_seqlens,
                                     int64_t max_seqlen, double eps, bool need_masks) {
  const int64_t rows = rows_of("grad", grad);
  const Members members{labels, counts, masks, weights, cu_seqlens, max_seqlen, rows};
  const Layout layout = check_members(members, wide_of(x));
  check_merged(x, labels);
  const index_t dim = x.size(-1);
  check_tensor("grad", grad, {x.scalar_type()}, {layout.images(), rows, dim});
  check_at_least("eps", eps, 0);
  need_masks = need_masks && masks != nullptr;
  const auto made = [&](const Tensor* wanted) {
    return wanted ? empty_as(*wanted) : empty_cpu({0}, x.scalar_type());
  };
  Tensor grad_x = empty_as(x), grad_masks = made(need_masks ? masks : nullptr);
  Tensor grad_weights = made(weights);
  for_type_of(x, [&](auto zero) {
    using T = decltype(zero);
    parallel_images(layout.images(), [&](index_t b) {
      const index_t start = layout.start[b], at = layout.mask_offset(b, rows);
      const Merge<T> image{values<T>(grad) + b * rows * dim,
                           values<T>(x) + start * dim,
                           values<T>(masks, at),
                           values<index_t>(labels) + start,
                           values<T>(weights, start),
                           layout.tokens(b),
                           dim,
                           rows,
                           layout.mask_stride(b),
                           static_cast<T>(eps),
                           data<T>(grad_x) + start * dim,
                           need_masks ? data<T>(grad_masks) + at : nullptr,
                           weights ? data<T>(grad_weights) + start : nullptr};
      if (masks)
        merge_masks_backward(image);
      else
        merge_members_backward(image);
    });
  });
  return {std::move(grad_x), std::move(grad_masks), std::move(grad_weights)};
}

// grad (..., D), tokens (B, rows, D) and masks in float32 or float64; without masks the gradient of
// `unmerge_hard`. Gradients that are not needed are empty.
std::array<Tensor, 2> unmerge_backward(const Tensor& grad, const Tensor& tokens,
                                       const Tensor* masks, const Tensor& labels,
                                       const Tensor& counts, const Tensor* cu_seqlens,
                                       int64_t max_seqlen, bool need_masks) {
  const Layout layout = check_spread(tokens, labels, counts, masks, cu_seqlens, max_seqlen);
  check_tensor("grad", grad, {tokens.scalar_type()}, feature_shape(labels, tokens.size(-1)));
  const index_t dim = tokens.size(-1), rows = tokens.size(1);
  need_masks = need_masks && masks != nullptr;
  Tensor grad_tokens = empty_as(tokens);
  Tensor grad_masks = need_masks ? empty_as(*masks) : empty_cpu({0}, tokens.scalar_type());
  for_type_of(tokens, [&](auto zero) {
    using T = decltype(zero);
    parallel_images(layout.images(), [&](index_t b) {
      const index_t start = layout.start[b], count = layout.tokens(b);
      const T* g = values<T>(grad) + start * dim;
      T* out = data<T>(grad_tokens) + b * rows * dim;
      if (!masks) {
        const index_t* label = values<index_t>(labels) + start;
        std::fill_n(out, rows * dim, T{0});
        for (index_t i = 0; i < count; ++i)
          if (label[i] >= 0) kernels<T>().accumulate(out + label[i] * dim, g + i * dim, T{1}, dim);
        return;
      }
      const index_t at = layout.mask_offset(b, rows), stride = layout.mask_stride(b);
      const T* mask = values<T>(*masks) + at;
      const bool* all = nullptr;
      T* coefs =
          Scratch::of_this_thread().get<T>(Scratch::packed, panels_of(rows) * kPanel * count);
      for (index_t top = 0; top < rows; top += kPanel)
        kernels<T>().pack_panel(mask + top * stride, stride, std::min(kPanel, rows - top), count,
                                coefs + top * count);
      multiply_coefficients(coefs, g, all, count, dim, rows, out);
      if (need_masks)
        row_products(values<T>(tokens) + b * rows * dim, g, all, rows, count, dim,
                     data<T>(grad_masks) + at, stride);
    });
  });
  return {std::move(grad_tokens), std::move(grad_masks)};
}

}  // namespace setok
