// Threads, scratch memory and options of all CPU kernels.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>

#include "simd/types.h"

namespace setok {

enum class Scale : int64_t { variance, fixed };

struct Options {
  index_t k, max_clusters;
  Kernel kernel;
  Alpha alpha;
  double bandwidth, beta, temperature, offset;
  Scale scale;
  double factor;  // scale of the squared distances, if fixed
  bool score_norm_max, distinct_seeds, include_self, exact;
  double stop_residual, min_mass;
};

// Calls f(i) for i in [0, count) from torch's threads. Calls of f are independent, so results do
// not depend on the number of threads. Inside another parallel region it runs serially.
void parallel_tasks(index_t count, const std::function<void(index_t)>& f);

// parallel_tasks over blocks [begin, end) of at most `block` items.
template <class F>
void parallel_blocks(index_t count, index_t block, const F& f) {
  const index_t blocks = (count + block - 1) / block;
  parallel_tasks(blocks, [&](index_t b) {
    const index_t begin = b * block;
    f(begin, begin + block < count ? begin + block : count);
  });
}

index_t num_threads();

// Calls f(b) for every image: in parallel, or with fewer images than threads serially, so that the
// threads share the work of each image.
template <class F>
void parallel_images(index_t images, const F& f) {
  if (images >= num_threads()) return parallel_tasks(images, f);
  for (index_t b = 0; b < images; ++b) f(b);
}

// Buffers of one thread, kept between calls: new memory costs a page fault per 4 KB.
class Scratch {
 public:
  enum Slot {
    x,
    packed,
    distances,
    norm,
    row,
    totals,
    finite,
    vectors,
    position,
    tile,
    lists,
    candidate,
    seeds,
    columns,
    products,
    edges,
    partners,
    weights,
    output,
    kSlots
  };

  static Scratch& of_this_thread();

  template <class T>
  T* get(Slot slot, index_t count) {
    return static_cast<T*>(bytes(slot, static_cast<size_t>(count) * sizeof(T)));
  }

  // Returns large buffers to the system.
  void trim();

  ~Scratch();
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

 private:
  static constexpr size_t kAlignment = 64;

  void* bytes(Slot slot, size_t size);
  void release(Slot slot);

  void* data_[kSlots] = {};
  size_t size_[kSlots] = {};
};

}  // namespace setok
