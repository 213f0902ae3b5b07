// Tensors of the stable ABI as plain pointers.

#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "common.h"
#include "features.h"

namespace setok {

using torch::headeronly::ScalarType;

inline Dtype dtype_of(const torch::stable::Tensor& tensor) {
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
      STD_TORCH_CHECK(false, "expected float64, float32, bfloat16 or float16");
  }
}

template <class T>
T* data(const torch::stable::Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

inline torch::stable::Tensor empty_cpu(const std::vector<int64_t>& shape, ScalarType dtype) {
  return torch::stable::empty(shape, dtype);
}

inline torch::stable::Tensor empty_index(const std::vector<int64_t>& shape) {
  return empty_cpu(shape, ScalarType::Long);
}

// (B + 1,) int32 or int64 offsets.
inline std::vector<index_t> offsets_of(const torch::stable::Tensor& cu_seqlens) {
  std::vector<index_t> offsets(cu_seqlens.numel());
  for (size_t i = 0; i < offsets.size(); ++i)
    offsets[i] = cu_seqlens.scalar_type() == ScalarType::Long
                     ? static_cast<const int64_t*>(cu_seqlens.const_data_ptr())[i]
                     : static_cast<const int32_t*>(cu_seqlens.const_data_ptr())[i];
  return offsets;
}

}  // namespace setok
