// The operations `setok_cpu::merge_hard` and `unmerge_hard`: means of the members of each label,
// and every token's cluster back.

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "simd_math.h"
#include "tensors.h"

namespace setok {
namespace {

using torch::stable::Tensor;

// sum += weight * x; tells whether x is finite, and leaves sum alone where it is not.
template <class T>
SETOK_INLINE bool accumulate(T* sum, const T* x, T weight, index_t dim) {
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
  if (sum_of_checks != 0) return false;
#pragma omp simd
  for (index_t j = 0; j < dim; ++j) sum[j] += weight * x[j];
  return true;
}

SETOK_CLONES bool accumulate_of(float* sum, const float* x, float weight, index_t dim) {
  return accumulate(sum, x, weight, dim);
}
SETOK_CLONES bool accumulate_of(double* sum, const double* x, double weight, index_t dim) {
  return accumulate(sum, x, weight, dim);
}

// Members are added in ascending order, so the sum depends on nothing but them.
template <class T>
void merge_image(const T* x, const index_t* labels, const T* weights, index_t tokens, index_t dim,
                 index_t rows, T* out) {
  std::vector<T> mass(rows, T{0});
  std::fill_n(out, rows * dim, T{0});
  for (index_t i = 0; i < tokens; ++i) {
    if (labels[i] < 0) continue;
    const T weight = weights == nullptr ? T{1} : weights[i];
    if (accumulate_of(out + labels[i] * dim, x + i * dim, weight, dim)) mass[labels[i]] += weight;
  }
  for (index_t row = 0; row < rows; ++row) {
    if (!(mass[row] > 0)) continue;
    for (index_t j = 0; j < dim; ++j) out[row * dim + j] /= mass[row];
  }
}

// Start of each image among all tokens: cu_seqlens, or the multiples of N.
std::vector<index_t> starts(const Tensor& labels, const std::optional<Tensor>& cu_seqlens) {
  if (cu_seqlens) return offsets_of(*cu_seqlens);
  std::vector<index_t> offsets(labels.size(0) + 1);
  for (size_t b = 0; b < offsets.size(); ++b) offsets[b] = static_cast<index_t>(b) * labels.size(1);
  return offsets;
}

// x (..., D) and weights in float32 or float64, labels (...); (B, rows, D).
Tensor merge_hard(const Tensor& x, const Tensor& labels, std::optional<Tensor> weights,
                  std::optional<Tensor> cu_seqlens, int64_t rows) {
  const std::vector<index_t> offsets = starts(labels, cu_seqlens);
  const index_t images = static_cast<index_t>(offsets.size()) - 1, dim = x.size(-1);
  Tensor out = empty_cpu({images, rows, dim}, x.scalar_type());
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const auto* from = static_cast<const T*>(x.const_data_ptr());
    const auto* weight = weights ? static_cast<const T*>(weights->const_data_ptr()) : nullptr;
    const auto* label = static_cast<const index_t*>(labels.const_data_ptr());
    T* to = data<T>(out);
    parallel_tasks(images, [&](index_t b) {
      const index_t start = offsets[b];
      merge_image(from + start * dim, label + start, weight == nullptr ? nullptr : weight + start,
                  offsets[b + 1] - start, dim, rows, to + b * rows * dim);
    });
  };
  if (dtype_of(x) == Dtype::f64)
    run(double{});
  else
    run(float{});
  return out;
}

// tokens (B, rows, D) of any dtype, labels (...); (..., D).
Tensor unmerge_hard(const Tensor& tokens, const Tensor& labels, std::optional<Tensor> cu_seqlens) {
  const std::vector<index_t> offsets = starts(labels, cu_seqlens);
  const index_t images = static_cast<index_t>(offsets.size()) - 1, dim = tokens.size(-1);
  std::vector<int64_t> shape(labels.sizes().begin(), labels.sizes().end());
  shape.push_back(dim);
  Tensor out = empty_cpu(shape, tokens.scalar_type());
  const Dtype dtype = dtype_of(tokens);
  const index_t width = dim * (dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2);
  const auto* from = static_cast<const char*>(tokens.const_data_ptr());
  const auto* label = static_cast<const index_t*>(labels.const_data_ptr());
  auto* to = static_cast<char*>(out.mutable_data_ptr());
  for (index_t b = 0; b < images; ++b) {
    const char* rows = from + b * tokens.size(1) * width;
    parallel_blocks(offsets[b + 1] - offsets[b], 256, [&](index_t begin, index_t end) {
      for (index_t i = offsets[b] + begin; i < offsets[b] + end; ++i) {
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
  m.def("unmerge_hard(Tensor tokens, Tensor labels, Tensor? cu_seqlens) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(setok_cpu, CPU, m) {
  m.impl("merge_hard", TORCH_BOX(&setok::merge_hard));
  m.impl("unmerge_hard", TORCH_BOX(&setok::unmerge_hard));
}
