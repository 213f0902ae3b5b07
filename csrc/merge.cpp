// The operations `setok_cpu::merge_hard`, `merge_soft`, `unmerge_hard` and `unmerge_soft`: weighted
// means of the tokens of each cluster, and every token's clusters back.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "gram.h"
#include "tensors.h"

namespace setok {
namespace {

using torch::stable::Tensor;

template <class T>
SETOK_INLINE bool finite(const T* x, index_t dim) {
  // 0 * x is not 0 exactly for the non-finite, and a sum of zeros keeps what is not.
  T check[kLanes] = {};
  const index_t whole = dim / kLanes * kLanes;
  for (index_t j = 0; j < whole; j += kLanes) {
#pragma omp simd
    for (index_t lane = 0; lane < kLanes; ++lane) check[lane] += 0 * x[j + lane];
  }
  for (index_t j = whole; j < dim; ++j) check[0] += 0 * x[j];
  T sum_of_checks = 0;
  for (index_t lane = 0; lane < kLanes; ++lane) sum_of_checks += check[lane];
  return sum_of_checks == 0;
}

template <class T>
SETOK_INLINE void accumulate(T* sum, const T* x, T weight, index_t dim) {
#pragma omp simd
  for (index_t j = 0; j < dim; ++j) sum[j] += weight * x[j];
}

#define SETOK_MERGE(T)                                                            \
  SETOK_CLONES bool is_finite(const T* x, index_t dim) { return finite(x, dim); } \
  SETOK_CLONES void accumulate_of(T* sum, const T* x, T weight, index_t dim) {    \
    accumulate(sum, x, weight, dim);                                              \
  }
SETOK_MERGE(float)
SETOK_MERGE(double)
#undef SETOK_MERGE

// Members are added in ascending order, so the sum depends on nothing but them.
template <class T>
void merge_members(const T* x, const index_t* labels, const T* weights, index_t tokens, index_t dim,
                   index_t rows, T* out) {
  std::vector<T> mass(rows, T{0});
  std::fill_n(out, rows * dim, T{0});
  for (index_t i = 0; i < tokens; ++i) {
    if (labels[i] < 0 || !is_finite(x + i * dim, dim)) continue;
    const T weight = weights == nullptr ? T{1} : weights[i];
    accumulate_of(out + labels[i] * dim, x + i * dim, weight, dim);
    mass[labels[i]] += weight;
  }
  for (index_t row = 0; row < rows; ++row) {
    if (!(mass[row] > 0)) continue;
    for (index_t j = 0; j < dim; ++j) out[row * dim + j] /= mass[row];
  }
}

// Columns [left, left + kPanel) of x (count, dim), zeros behind the last and where not `usable`.
template <class T>
void copy_columns(const T* x, const bool* usable, index_t count, index_t dim, index_t left, T* to) {
  const index_t width = std::min(kPanel, dim - left);
  for (index_t i = 0; i < count; ++i, to += kPanel) {
    if (width < kPanel || !usable[i]) std::fill_n(to, kPanel, T{0});
    if (usable[i]) std::copy_n(x + i * dim + left, width, to);
  }
}

template <class T>
void store(const T* tile, index_t count, index_t left, T* to, index_t dim) {
  const index_t width = std::min(kPanel, dim - left);
  for (index_t r = 0; r < count; ++r) std::copy_n(tile + r * kPanel, width, to + r * dim + left);
}

// Shares of the tokens in each row as panels, packed[(p * tokens + i) * kPanel + row], and their
// sums; `usable` tells which tokens may be read.
template <class T>
void pack_shares(const T* x, const T* masks, index_t mask_stride, const index_t* labels,
                 const T* weights, index_t tokens, index_t dim, index_t rows, T* packed, T* mass,
                 bool* usable) {
  parallel_blocks(tokens, 64, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) usable[i] = labels[i] >= 0 && is_finite(x + i * dim, dim);
  });
  parallel_tasks(panels_of(rows), [&](index_t p) {
    const index_t top = p * kPanel, count = std::min(kPanel, rows - top);
    T *panel = packed + top * tokens, *sum = mass + top;
    pack_panel(masks + top * mask_stride, mask_stride, count, tokens, panel);
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
  T* shares = scratch.get<T>(Scratch::packed, panels * kPanel * tokens);
  T* mass = scratch.get<T>(Scratch::row, panels * kPanel);
  bool* usable = scratch.get<bool>(Scratch::finite, tokens);
  pack_shares(x, masks, mask_stride, labels, weights, tokens, dim, rows, shares, mass, usable);
  // Rows behind the residual are empty, and mostly there are many.
  index_t used = rows;
  while (used > 0 && !(mass[used - 1] != 0)) --used;
  std::fill(out + used * dim, out + rows * dim, T{0});
  parallel_tasks(panels_of(dim), [&](index_t q) {
    alignas(64) T tile[kPanel * kPanel];
    T* columns = Scratch::of_this_thread().get<T>(Scratch::tile, kPanel * tokens);
    copy_columns(x, usable, tokens, dim, q * kPanel, columns);
    for (index_t top = 0; top < used; top += kPanel) {
      const index_t count = std::min(kPanel, used - top);
      multiply_panels(shares + top * tokens, columns, tokens, tile, count);
      for (index_t r = 0; r < count; ++r)
        for (index_t c = 0; c < kPanel; ++c) tile[r * kPanel + c] /= mass[top + r] + eps;
      store(tile, count, q * kPanel, out + top * dim, dim);
    }
  });
}

// out (tokens, dim) = sum_c M_ci t_c, in the panels of the tokens.
template <class T>
void unmerge_masks(const T* clusters, const T* masks, index_t mask_stride, index_t tokens,
                   index_t dim, index_t rows, T* out) {
  Scratch& scratch = Scratch::of_this_thread();
  const index_t panels = panels_of(dim);
  T* columns = scratch.get<T>(Scratch::packed, panels * kPanel * rows);
  bool* usable = scratch.get<bool>(Scratch::finite, rows);
  std::fill_n(usable, rows, true);
  parallel_tasks(panels, [&](index_t q) {
    copy_columns(clusters, usable, rows, dim, q * kPanel, columns + q * kPanel * rows);
  });
  parallel_tasks(panels_of(tokens), [&](index_t p) {
    alignas(64) T tile[kPanel * kPanel];
    T* shares = Scratch::of_this_thread().get<T>(Scratch::tile, kPanel * rows);
    const index_t top = p * kPanel, count = std::min(kPanel, tokens - top);
    // The masks lie as a panel does already: kPanel tokens of every row.
    for (index_t row = 0; row < rows; ++row) {
      T* to = shares + row * kPanel;
      std::copy_n(masks + row * mask_stride + top, count, to);
      std::fill(to + count, to + kPanel, T{0});
    }
    for (index_t q = 0; q < panels; ++q) {
      multiply_panels(shares, columns + q * kPanel * rows, rows, tile, count);
      store(tile, count, q * kPanel, out + top * dim, dim);
    }
  });
}

// The images of a result: where each starts among all tokens, and how far apart its masks are.
struct Layout {
  std::vector<index_t> start;
  bool packed;

  Layout(const Tensor& labels, const std::optional<Tensor>& cu_seqlens)
      : packed(cu_seqlens.has_value()) {
    if (packed) {
      start = offsets_of(*cu_seqlens);
      return;
    }
    for (index_t b = 0; b <= labels.size(0); ++b) start.push_back(b * labels.size(1));
  }

  index_t images() const { return static_cast<index_t>(start.size()) - 1; }
  index_t tokens(index_t b) const { return start[b + 1] - start[b]; }
  index_t mask_stride(index_t b) const { return packed ? start.back() : tokens(b); }
  // Of masks (B, rows, N) or (rows, T).
  index_t mask_offset(index_t b, index_t rows) const { return packed ? start[b] : rows * start[b]; }
};

std::vector<int64_t> spread_shape(const Tensor& labels, index_t dim) {
  std::vector<int64_t> shape(labels.sizes().begin(), labels.sizes().end());
  shape.push_back(dim);
  return shape;
}

template <class F>
void for_type_of(const Tensor& x, const F& f) {
  if (dtype_of(x) == Dtype::f64)
    f(double{});
  else
    f(float{});
}

template <class T>
const T* values(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
const T* values(const std::optional<Tensor>& tensor, index_t offset) {
  return tensor ? values<T>(*tensor) + offset : nullptr;
}

// x (..., D) and weights in float32 or float64, labels (...); (B, rows, D).
Tensor merge_hard(const Tensor& x, const Tensor& labels, std::optional<Tensor> weights,
                  std::optional<Tensor> cu_seqlens, int64_t rows) {
  const Layout layout(labels, cu_seqlens);
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

// As merge_hard, with masks (B, rows, N) or (rows, T) in the dtype of x.
Tensor merge_soft(const Tensor& x, const Tensor& masks, const Tensor& labels,
                  std::optional<Tensor> weights, std::optional<Tensor> cu_seqlens, double eps) {
  const Layout layout(labels, cu_seqlens);
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
                    std::optional<Tensor> cu_seqlens) {
  const Layout layout(labels, cu_seqlens);
  const index_t dim = tokens.size(-1), rows = masks.size(-2);
  Tensor out = empty_cpu(spread_shape(labels, dim), tokens.scalar_type());
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

// tokens (B, rows, D) of any dtype, labels (...); (..., D).
Tensor unmerge_hard(const Tensor& tokens, const Tensor& labels, std::optional<Tensor> cu_seqlens) {
  const Layout layout(labels, cu_seqlens);
  const index_t dim = tokens.size(-1);
  Tensor out = empty_cpu(spread_shape(labels, dim), tokens.scalar_type());
  const Dtype dtype = dtype_of(tokens);
  const index_t width = dim * (dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2);
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
}  // namespace setok

STABLE_TORCH_LIBRARY_FRAGMENT(setok_cpu, m) {
  m.def(
      "merge_hard(Tensor x, Tensor labels, Tensor? weights, Tensor? cu_seqlens, int rows) -> "
      "Tensor");
  m.def(
      "merge_soft(Tensor x, Tensor masks, Tensor labels, Tensor? weights, Tensor? cu_seqlens, "
      "float eps) -> Tensor");
  m.def("unmerge_soft(Tensor tokens, Tensor masks, Tensor labels, Tensor? cu_seqlens) -> Tensor");
  m.def("unmerge_hard(Tensor tokens, Tensor labels, Tensor? cu_seqlens) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(setok_cpu, CPU, m) {
  m.impl("merge_hard", TORCH_BOX(&setok::merge_hard));
  m.impl("merge_soft", TORCH_BOX(&setok::merge_soft));
  m.impl("unmerge_soft", TORCH_BOX(&setok::unmerge_soft));
  m.impl("unmerge_hard", TORCH_BOX(&setok::unmerge_hard));
}
