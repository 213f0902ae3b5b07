#include "common.h"

#include <atomic>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>

#include "abi/tensor.h"

namespace setok {

index_t num_threads() { return torch_threads(); }

void parallel_tasks(index_t count, const std::function<void(index_t)>& f) {
  const index_t threads = num_threads();
  if (threads <= 1 || count <= 1) {
    for (index_t i = 0; i < count; ++i) f(i);
    return;
  }
  // Tasks are interleaved over the threads, because the first ones may be the largest.
  std::atomic<index_t> next{0};
  // torch's own loop would turn any exception into a RuntimeError, and std::exception_ptr needs a
  // newer C++ library than old systems have.
  std::atomic<bool> no_memory{false}, misfit{false};
  std::string failure;
  std::mutex guard;
  torch_parallel(threads, [&](index_t, index_t) {
    try {
      for (index_t i = next++; i < count; i = next++) f(i);
    } catch (const std::bad_alloc&) {
      no_memory = true;
      next = count;
    } catch (const std::exception& error) {
      const std::lock_guard<std::mutex> lock(guard);
      misfit = dynamic_cast<const std::invalid_argument*>(&error) != nullptr;
      failure = error.what();
      next = count;
    }
  });
  if (no_memory) throw std::bad_alloc();
  if (misfit) throw std::invalid_argument(failure);
  if (!failure.empty()) throw std::runtime_error(failure);
}

Scratch& Scratch::of_this_thread() {
  thread_local Scratch scratch;
  return scratch;
}

void* Scratch::bytes(Slot slot, size_t size) {
  size = (size + kAlignment) / kAlignment * kAlignment;
  if (size_[slot] < size) {
    release(slot);
    data_[slot] = ::operator new(size, std::align_val_t{kAlignment});
    size_[slot] = size;
  }
  return data_[slot];
}

void Scratch::release(Slot slot) {
  ::operator delete(data_[slot], std::align_val_t{kAlignment});
  data_[slot] = nullptr;
  size_[slot] = 0;
}

void Scratch::trim() {
  constexpr size_t kKept = size_t{8} << 20;
  for (int slot = 0; slot < kSlots; ++slot)
    if (size_[slot] > kKept) release(static_cast<Slot>(slot));
}

Scratch::~Scratch() {
  for (int slot = 0; slot < kSlots; ++slot) release(static_cast<Slot>(slot));
}

}  // namespace setok
