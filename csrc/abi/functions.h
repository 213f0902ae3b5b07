// Functions of torch's stable C interface that we call. Names and signatures are its documented
// ABI, so torch is not needed to compile, and one binary runs on torch 2.11 and later versions.
// tests/native/test_abi.py compares them with torch's headers.

#pragma once

#include <cstddef>
#include <cstdint>

// Declared as in torch's headers, so that a file may include both.
struct AtenTensorOpaque;
using AtenTensorHandle = AtenTensorOpaque*;
class TorchLibraryOpaque;
using TorchLibraryHandle = TorchLibraryOpaque*;
using AOTITorchError = int32_t;  // 0 is success
using StableIValue = uint64_t;
typedef void (*ParallelFunc)(int64_t begin, int64_t end, void* ctx);
using StableKernel = void (*)(StableIValue* stack, uint64_t arguments, uint64_t results);

// F(result, name, (arguments)) for each function; stub.cpp generates the link-time stand-in for
// torch's library from the same list.
#define SETOK_TORCH_FUNCTIONS(F)                                                                 \
  F(int32_t, aoti_torch_device_type_cpu, ())                                                     \
  F(int32_t, aoti_torch_dtype_float64, ())                                                       \
  F(int32_t, aoti_torch_dtype_float32, ())                                                       \
  F(int32_t, aoti_torch_dtype_bfloat16, ())                                                      \
  F(int32_t, aoti_torch_dtype_float16, ())                                                       \
  F(int32_t, aoti_torch_dtype_int64, ())                                                         \
  F(int32_t, aoti_torch_dtype_int32, ())                                                         \
  F(int32_t, aoti_torch_dtype_bool, ())                                                          \
  F(int32_t, aoti_torch_dtype_uint8, ())                                                         \
  F(int32_t, aoti_torch_dtype_int8, ())                                                          \
  F(int32_t, aoti_torch_dtype_int16, ())                                                         \
  F(int32_t, aoti_torch_dtype_complex64, ())                                                     \
  F(int32_t, aoti_torch_dtype_complex128, ())                                                    \
  F(AOTITorchError, aoti_torch_delete_tensor_object, (AtenTensorHandle tensor))                  \
  F(AOTITorchError, aoti_torch_get_device_type, (AtenTensorHandle tensor, int32_t* device_type)) \
  F(AOTITorchError, aoti_torch_get_dtype, (AtenTensorHandle tensor, int32_t* dtype))             \
  F(AOTITorchError, aoti_torch_get_dim, (AtenTensorHandle tensor, int64_t* dim))                 \
  F(AOTITorchError, aoti_torch_get_numel, (AtenTensorHandle tensor, int64_t* numel))             \
  F(AOTITorchError, aoti_torch_get_sizes, (AtenTensorHandle tensor, int64_t** sizes))            \
  F(AOTITorchError, aoti_torch_get_strides, (AtenTensorHandle tensor, int64_t** strides))        \
  F(AOTITorchError, aoti_torch_is_contiguous, (AtenTensorHandle tensor, bool* contiguous))       \
  F(AOTITorchError, aoti_torch_get_storage_offset, (AtenTensorHandle tensor, int64_t* offset))   \
  F(AOTITorchError, aoti_torch_get_storage_size, (AtenTensorHandle tensor, int64_t* bytes))      \
  F(size_t, aoti_torch_dtype_element_size, (int32_t dtype))                                      \
  F(AOTITorchError, torch_get_mutable_data_ptr, (AtenTensorHandle tensor, void** data))          \
  F(AOTITorchError, torch_get_const_data_ptr, (AtenTensorHandle tensor, const void** data))      \
  F(AOTITorchError, aoti_torch_empty_strided,                                                    \
    (int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype,                   \
     int32_t device_type, int32_t device_index, AtenTensorHandle* tensor))                       \
  F(AOTITorchError, torch_get_num_threads, (uint32_t* threads))                                  \
  F(AOTITorchError, torch_parallel_for,                                                          \
    (int64_t begin, int64_t end, int64_t grain_size, ParallelFunc function, void* context))      \
  F(AOTITorchError, aoti_torch_library_init_impl,                                                \
    (const char* name, const char* dispatch_key, const char* file, uint32_t line,                \
     TorchLibraryHandle* library))                                                               \
  F(AOTITorchError, torch_library_impl,                                                          \
    (TorchLibraryHandle library, const char* name, StableKernel kernel, uint64_t build_version)) \
  F(AOTITorchError, aoti_torch_delete_library_object, (TorchLibraryHandle library))

// Visible although this library hides its symbols, because they come from another one.
#ifdef _WIN32
#define SETOK_VISIBLE
#else
#define SETOK_VISIBLE __attribute__((visibility("default")))
#endif
#define SETOK_DECLARE(result, name, arguments) SETOK_VISIBLE result name arguments;
extern "C" {
SETOK_TORCH_FUNCTIONS(SETOK_DECLARE)
}
#undef SETOK_DECLARE
