// Conversion of tensors to plain pointers, and helpers of all operators.

#pragma once

#include <algorithm>
#include <vector>

#include "abi/tensor.h"
#include "common.h"
#include "features.h"

namespace setok {

inline Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return Dtype::f64;
    case ScalarType::Float:
      return Dtype::f32;
    case ScalarType::BFloat16:
      return Dtype::bf16;
    case ScalarType::Half:
      return Dtype::f16;
    default:
      throw std::logic_error("a dtype that was not checked");
  }
}

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

inline Shape shape_of(const Tensor& tensor) {
  return {tensor.sizes().begin(), tensor.sizes().end()};
}

// Shape without the features.
inline Shape leading_of(const Tensor& x) { return {x.sizes().begin(), x.sizes().end() - 1}; }

// Shape with features, for one token per label.
inline Shape feature_shape(const Tensor& labels, int64_t dim) {
  Shape shape = shape_of(labels);
  shape.push_back(dim);
  return shape;
}

// Dtype of values computed from `x`.
inline ScalarType wide_of(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor empty_index(const Shape& shape) { return empty_cpu(shape, ScalarType::Long); }

inline Tensor empty_as(const Tensor& tensor) {
  return empty_cpu(shape_of(tensor), tensor.scalar_type());
}

// (B + 1,) int32 or int64 offsets.
inline std::vector<index_t> offsets_of(const Tensor& cu_seqlens) {
  std::vector<index_t> offsets(cu_seqlens.numel());
  for (size_t i = 0; i < offsets.size(); ++i)
    offsets[i] = cu_seqlens.scalar_type() == ScalarType::Long
                     ? static_cast<const int64_t*>(cu_seqlens.const_data_ptr())[i]
                     : static_cast<const int32_t*>(cu_seqlens.const_data_ptr())[i];
  return offsets;
}

// Encoding of sigma in an operation; `factor` is read with the last value only.
enum class GivenScale : int64_t { variance, dim, number };

// Options of masks. `learnable` (4,), if given, replaces the numbers.
struct MaskOptions {
  int64_t kernel, alpha;
  double bandwidth, beta, temperature, offset;
  int64_t scale;
  double factor;
  bool score_norm_max;

  Options options(index_t dim, const Tensor* learnable) const {
    double numbers[4] = {bandwidth, beta, temperature, offset};
    if (learnable) {
      const bool wide = dtype_of(*learnable) == Dtype::f64;
      for (index_t i = 0; i < 4; ++i)
        numbers[i] = wide ? static_cast<const double*>(learnable->const_data_ptr())[i]
                          : static_cast<const float*>(learnable->const_data_ptr())[i];
    }
    Options out{};
    out.kernel = static_cast<Kernel>(kernel);
    out.alpha = static_cast<Alpha>(alpha);
    out.bandwidth = numbers[0];
    out.beta = numbers[1];
    out.temperature = numbers[2];
    out.offset = numbers[3];
    const auto given = static_cast<GivenScale>(scale);
    out.scale = given == GivenScale::variance ? Scale::variance : Scale::fixed;
    out.factor = given == GivenScale::dim ? 1.0 / static_cast<double>(dim) : factor;
    out.score_norm_max = score_norm_max;
    return out;
  }
};

// Images of a result: start of each among all tokens, and strides of the masks.
struct Layout {
  std::vector<index_t> start;
  bool packed;

  // From tokens (B, N), or (T,) with offsets.
  Layout(const Shape& leading, const Tensor* cu_seqlens) : packed(cu_seqlens != nullptr) {
    if (packed) {
      start = offsets_of(*cu_seqlens);
      return;
    }
    for (index_t b = 0; b <= leading[0]; ++b) start.push_back(b * leading[1]);
  }

  index_t images() const { return static_cast<index_t>(start.size()) - 1; }
  index_t tokens(index_t b) const { return start[b + 1] - start[b]; }
  index_t mask_stride(index_t b) const { return packed ? start.back() : tokens(b); }
  // From masks (B, rows, N) or (rows, T).
  index_t mask_offset(index_t b, index_t rows) const { return packed ? start[b] : rows * start[b]; }
};

// Tokens of image b of x (B, N, D) or (T, D).
inline ImageInput image_of(const Tensor& x, const Tensor* valid, const Layout& layout, index_t b) {
  const index_t start = layout.start[b], dim = x.size(-1);
  const auto* from = static_cast<const char*>(x.const_data_ptr());
  const bool* mask = valid ? static_cast<const bool*>(valid->const_data_ptr()) + start : nullptr;
  const Dtype dtype = dtype_of(x);
  return {from + start * dim * bytes_of(dtype), dtype, mask, layout.tokens(b), dim};
}

// Calls f(double{}) or f(float{}), with the type of the results of `x`.
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
const T* values(const Tensor* tensor, index_t offset) {
  return tensor ? values<T>(*tensor) + offset : nullptr;
}

}  // namespace setok
