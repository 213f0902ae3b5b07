#include "common.h"

#include <atomic>
#include <exception>
#include <mutex>

#include "abi/tensor.h"

namespace setok {

index_t num_threads() { return torch_threads(); }

void parallel_tasks(index_t count, const std::function<void(index_t)>& f) {
  const index_t threads = num_threads();
  if (threads <= 1 || count <= 1) {
    for (index_t i = 0; i < count; ++i) f(i);
    return;
  }
  // Tasks are taken in turn: the first ones may be the largest.
  std::atomic<index_t> next{0};
  // torch's own loop would turn it into a RuntimeError, whatever it was.
  std::exception_ptr failure;
  std::mutex guard;
  torch_parallel(threads, [&](index_t, index_t) {
    try {
      for (index_t i = next++; i < count; i = next++) f(i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(guard);
      if (!failure) failure = std::current_exception();
      next = count;
    }
  });
  if (failure) std::rethrow_exception(failure);
}

Scratch& Scratch::of_this_thread() {
  thread_local Scratch scratch;
  return scratch;
}

void* Scratch::bytes(Slot slot, size_t size) {
  constexpr size_t kAlign = 64;
  size = (size + kAlign) / kAlign * kAlign;
  if (size_[slot] < size) {
    std::free(data_[slot]);
    size_[slot] = 0;
    data_[slot] = std::aligned_alloc(kAlign, size);
    if (data_[slot] == nullptr) throw std::bad_alloc();
    size_[slot] = size;
  }
  return data_[slot];
}

void Scratch::trim() {
  constexpr size_t kKept = size_t{8} << 20;
  for (int slot = 0; slot < kSlots; ++slot) {
    if (size_[slot] <= kKept) continue;
    std::free(data_[slot]);
    data_[slot] = nullptr;
    size_[slot] = 0;
  }
}

Scratch::~Scratch() {
  for (void* data : data_) std::free(data);
}

}  // namespace setok
