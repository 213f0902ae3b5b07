// Owning handles of torch's tensors, and torch's threads.

#pragma once

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "functions.h"

namespace setok {

// Throws if a torch call failed; torch has written the reason to stderr.
inline void check_torch(AOTITorchError error, const char* function) {
  if (error != 0) throw std::runtime_error(std::string("torch: ") + function + " failed");
}
#define SETOK_TORCH(function, ...) ::setok::check_torch(function(__VA_ARGS__), #function)

// Supported dtypes, in the order of kDtypes.
enum class ScalarType {
  Double,
  Float,
  BFloat16,
  Half,
  Long,
  Int,
  Bool,
  Byte,
  Char,
  Short,
  ComplexFloat,
  ComplexDouble,
  Other
};

struct ScalarTypeInfo {
  const char* name;
  int32_t code;  // torch's code
};

inline const ScalarTypeInfo* scalar_types() {
  static const ScalarTypeInfo known[] = {{"float64", aoti_torch_dtype_float64()},
                                         {"float32", aoti_torch_dtype_float32()},
                                         {"bfloat16", aoti_torch_dtype_bfloat16()},
                                         {"float16", aoti_torch_dtype_float16()},
                                         {"int64", aoti_torch_dtype_int64()},
                                         {"int32", aoti_torch_dtype_int32()},
                                         {"bool", aoti_torch_dtype_bool()},
                                         {"uint8", aoti_torch_dtype_uint8()},
                                         {"int8", aoti_torch_dtype_int8()},
                                         {"int16", aoti_torch_dtype_int16()},
                                         {"complex64", aoti_torch_dtype_complex64()},
                                         {"complex128", aoti_torch_dtype_complex128()},
                                         {"another dtype", -1}};
  return known;
}

inline const char* name_of(ScalarType dtype) {
  return scalar_types()[static_cast<int>(dtype)].name;
}

using Shape = std::vector<int64_t>;

// Sizes or strides, valid during the lifetime of their tensor.
struct Sizes {
  const int64_t* first;
  int64_t count;

  const int64_t* begin() const { return first; }
  const int64_t* end() const { return first + count; }
};

// Tensor that owns its handle.
class Tensor {
 public:
  explicit Tensor(AtenTensorHandle handle) : handle_(handle) {}
  Tensor(Tensor&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Tensor& operator=(Tensor&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Tensor() {
    if (handle_ != nullptr) aoti_torch_delete_tensor_object(handle_);
  }

  // Releases the handle.
  AtenTensorHandle release() { return std::exchange(handle_, nullptr); }

  ScalarType scalar_type() const {
    const int32_t code = number<int32_t>(aoti_torch_get_dtype, "aoti_torch_get_dtype");
    int at = 0;
    while (at < static_cast<int>(ScalarType::Other) && scalar_types()[at].code != code) ++at;
    return static_cast<ScalarType>(at);
  }

  bool is_cpu() const {
    static const int32_t cpu = aoti_torch_device_type_cpu();
    return number<int32_t>(aoti_torch_get_device_type, "aoti_torch_get_device_type") == cpu;
  }

  bool is_contiguous() const {
    return number<bool>(aoti_torch_is_contiguous, "aoti_torch_is_contiguous");
  }

  int64_t dim() const { return number<int64_t>(aoti_torch_get_dim, "aoti_torch_get_dim"); }
  int64_t numel() const { return number<int64_t>(aoti_torch_get_numel, "aoti_torch_get_numel"); }

  Sizes sizes() const {
    return {number<int64_t*>(aoti_torch_get_sizes, "aoti_torch_get_sizes"), dim()};
  }
  Sizes strides() const {
    return {number<int64_t*>(aoti_torch_get_strides, "aoti_torch_get_strides"), dim()};
  }

  // Negative axes count from the end, as in Python.
  int64_t size(int64_t at) const {
    const Sizes all = sizes();
    return all.first[at < 0 ? at + all.count : at];
  }

  // Size in bytes.
  int64_t element_size() const {
    const int32_t code = number<int32_t>(aoti_torch_get_dtype, "aoti_torch_get_dtype");
    return static_cast<int64_t>(aoti_torch_dtype_element_size(code));
  }
  int64_t storage_size() const {
    return number<int64_t>(aoti_torch_get_storage_size, "aoti_torch_get_storage_size");
  }

  int64_t storage_offset() const {
    return number<int64_t>(aoti_torch_get_storage_offset, "aoti_torch_get_storage_offset");
  }

  void* mutable_data_ptr() const {
    return number<void*>(torch_get_mutable_data_ptr, "torch_get_mutable_data_ptr");
  }
  const void* const_data_ptr() const {
    return number<const void*>(torch_get_const_data_ptr, "torch_get_const_data_ptr");
  }

 private:
  template <class T>
  T number(AOTITorchError (*get)(AtenTensorHandle, T*), const char* function) const {
    T value;
    check_torch(get(handle_, &value), function);
    return value;
  }

  AtenTensorHandle handle_;
};

// Contiguous uninitialised tensor on the CPU.
inline Tensor empty_cpu(const Shape& shape, ScalarType dtype) {
  static const int32_t cpu = aoti_torch_device_type_cpu();
  Shape strides(shape.size());
  int64_t stride = 1;
  for (size_t at = shape.size(); at-- > 0; stride *= shape[at] > 1 ? shape[at] : 1)
    strides[at] = stride;
  AtenTensorHandle handle = nullptr;
  SETOK_TORCH(aoti_torch_empty_strided, static_cast<int64_t>(shape.size()), shape.data(),
              strides.data(), scalar_types()[static_cast<int>(dtype)].code, cpu, 0, &handle);
  return Tensor(handle);
}

inline uint32_t torch_threads() {
  uint32_t threads = 1;
  SETOK_TORCH(torch_get_num_threads, &threads);
  return threads;
}

// Calls f(begin, end) on torch's threads, for parts of [0, count).
template <class F>
void torch_parallel(int64_t count, const F& f) {
  const auto call = [](int64_t begin, int64_t end, void* context) {
    (*static_cast<const F*>(context))(begin, end);
  };
  SETOK_TORCH(torch_parallel_for, 0, count, 1, call, const_cast<F*>(&f));
}

}  // namespace setok
