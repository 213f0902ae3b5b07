// Registration of functions as kernels of torch's operators, with a stack of 64-bit words for
// arguments and results.

#pragma once

#include <array>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <tuple>
#include <type_traits>

#include "tensor.h"

// torch catches exceptions of kernels, but only those of its own C++ library; those of another one
// end the process.
#if defined(__linux__) && defined(_LIBCPP_VERSION)
#error "torch for Linux uses GCC's C++ library; use GCC, or clang with -stdlib=libstdc++"
#endif

namespace setok {

// ABI version of this binary: torch 2.11, the oldest supported version.
constexpr uint64_t kTorchVersion = (uint64_t{2} << 56) | (uint64_t{11} << 48);

// Numbers are in the low bytes of a word.
template <class T>
struct Boxing {
  static T take(StableIValue word) {
    static_assert(std::is_arithmetic_v<T> && sizeof(T) <= sizeof(word));
    T value;
    std::memcpy(&value, &word, sizeof(value));
    return value;
  }
  static T pass(T value) { return value; }
};

// The kernel owns the tensors of its arguments and releases those of its results.
template <>
struct Boxing<Tensor> {
  static Tensor take(StableIValue word) { return Tensor(reinterpret_cast<AtenTensorHandle>(word)); }
  static const Tensor& pass(const Tensor& tensor) { return tensor; }
};

// Optional tensor, passed as a pointer: a pointer to a separate word that the kernel also owns;
// null for none.
template <>
struct Boxing<const Tensor*> {
  static std::optional<Tensor> take(StableIValue word) {
    auto* inner = reinterpret_cast<StableIValue*>(word);
    if (inner == nullptr) return std::nullopt;
    std::optional<Tensor> tensor = Boxing<Tensor>::take(*inner);
    delete inner;
    return tensor;
  }
  static const Tensor* pass(const std::optional<Tensor>& tensor) {
    return tensor ? &*tensor : nullptr;
  }
};

// Kernel of a function that takes tensors and numbers, and returns a tensor or an array of tensors.
template <auto function>
struct Boxed;

template <class Result, class... Arguments, Result (*function)(Arguments...)>
struct Boxed<function> {
  static void call(StableIValue* stack, uint64_t arguments, uint64_t results) {
    if (arguments != sizeof...(Arguments)) throw std::logic_error("a schema of other arguments");
    Result result = apply(stack, std::index_sequence_for<Arguments...>{});
    if (give(stack, result) != results) throw std::logic_error("a schema of other results");
  }

 private:
  template <size_t... at>
  static Result apply(const StableIValue* stack, std::index_sequence<at...>) {
    const std::tuple values{Boxing<std::decay_t<Arguments>>::take(stack[at])...};
    return function(Boxing<std::decay_t<Arguments>>::pass(std::get<at>(values))...);
  }

  static uint64_t give(StableIValue* stack, Tensor& tensor) {
    stack[0] = reinterpret_cast<StableIValue>(tensor.release());
    return 1;
  }

  template <size_t count>
  static uint64_t give(StableIValue* stack, std::array<Tensor, count>& tensors) {
    for (Tensor& tensor : tensors) give(stack++, tensor);
    return count;
  }
};

// Kernels of a namespace's operators for one dispatch key, registered during its lifetime.
class Library {
 public:
  struct Kernel {
    const char* name;
    StableKernel call;
  };

  Library(const char* name, const char* dispatch_key, std::initializer_list<Kernel> kernels) {
    SETOK_TORCH(aoti_torch_library_init_impl, name, dispatch_key, "setok_kernels", 0, &handle_);
    for (const Kernel& kernel : kernels)
      SETOK_TORCH(torch_library_impl, handle_, kernel.name, kernel.call, kTorchVersion);
  }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;
  ~Library() { aoti_torch_delete_library_object(handle_); }

 private:
  TorchLibraryHandle handle_ = nullptr;
};

}  // namespace setok
