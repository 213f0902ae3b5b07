#include "stream.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "simd/kernels.h"

namespace setok {
namespace {

// Number of panels and of tokens of a strip, which fits into an L2 cache.
constexpr index_t kPanels = 16, kStrip = kPanels * kPanel;

// Strip of tokens, packed into panels.
template <class T>
struct Strip {
  T* packed;
  index_t strip;  // -1 for none yet

  void load(const Features<T>& tokens, index_t wanted) {
    if (strip == wanted) return;
    strip = wanted;
    for (index_t p = 0; p < kPanels; ++p) {
      const index_t top = strip * kStrip + p * kPanel;
      if (top < tokens.n)
        tokens.pack(tokens.x + top * tokens.dim, std::min(kPanel, tokens.n - top),
                    panel(p, tokens.dim));
    }
  }

  T* panel(index_t p, index_t dim) const { return packed + p * kPanel * dim; }
};

// Calls consume(worker, tile) for each panel and each strip from its own on. Each worker gets its
// tiles in row-major order, so every token sees the others in ascending order.
template <class T, class F>
void walk(const DistanceRows<T>& rows, const F& consume) {
  const Features<T>& tokens = rows.tokens;
  const index_t n = tokens.n, dim = tokens.dim, strips = (n + kStrip - 1) / kStrip;
  std::atomic<index_t> next{0};
  const index_t pairs = strips * (strips + 1) / 2;
  parallel_tasks(num_threads(), [&](index_t worker) {
    Scratch& scratch = Scratch::of_this_thread();
    alignas(64) T product[kPanel * kPanel];
    T* buffer = scratch.get<T>(Scratch::tile, kPanel * kStrip);
    T* packed = scratch.get<T>(Scratch::packed, 2 * kStrip * dim);
    Strip<T> own{packed, -1}, columns{packed + kStrip * dim, -1};
    for (index_t pair = next++; pair < pairs; pair = next++) {
      index_t above = 0, right = pair;
      while (right >= strips - above) right -= strips - above++;
      own.load(tokens, above);
      if (right > 0) columns.load(tokens, above + right);
      const Strip<T>& other = right > 0 ? columns : own;
      const index_t left = other.strip * kStrip, count = std::min(kStrip, n - left);
      for (index_t p = 0; p < kPanels && above * kStrip + p * kPanel < n; ++p) {
        const index_t top = above * kStrip + p * kPanel;
        for (index_t q = 0; q < panels_of(count); ++q) {
          tokens.multiply(own.panel(p, dim), other.panel(q, dim), product, kPanel);
          kernels<T>().finish_tile(product, rows.norm + top, rows.norm + left + q * kPanel,
                                   buffer + q * kPanel, kStrip);
        }
        consume(worker,
                Tile<T>{buffer, kStrip, top, left, std::min(kPanel, n - top), count, right == 0});
      }
    }
  });
}

// Running lists of one worker.
template <class T>
struct OwnLists {
  index_t k;
  std::vector<T> distance, bound;
  std::vector<index_t> index, found;

  OwnLists(index_t n, index_t k)
      : k(k), distance(n * k), bound(n + kStrip, kFar<T>), index(n * k), found(n, 0) {}

  Lists<T> view() { return {k, distance.data(), bound.data(), index.data(), found.data()}; }
};

}  // namespace

template <class T>
void stream_neighbours(const DistanceRows<T>& rows, index_t k, bool include_self, index_t* knn,
                       T* farthest) {
  const index_t n = rows.tokens.n;
  std::fill_n(knn, n * k, index_t{-1});
  if (farthest != nullptr) std::fill_n(farthest, n, T{0});
  if (rows.all_zero) {
    for (index_t i = 0; i < n; ++i) {
      index_t slot = 0;
      for (index_t j = 0; j < n && slot < k; ++j)
        if (include_self || j != i) knn[i * k + slot++] = j;
    }
    return;
  }
  std::vector<OwnLists<T>> lists(num_threads(), OwnLists<T>(n, std::min(k, n)));
  std::vector<std::vector<T>> maxima(farthest == nullptr ? 0 : num_threads(),
                                     std::vector<T>(n + kStrip, T{0}));
  walk(rows, [&](index_t worker, const Tile<T>& tile) {
    const Lists<T> own = lists[worker].view();
    for (index_t r = 0; r < tile.rows; ++r) {
      if (!maxima.empty()) kernels<T>().take_farthest(maxima[worker].data(), tile, r);
      if (tile.diagonal && !include_self)
        tile.distance[r * tile.ld + tile.top - tile.left + r] = kFar<T>;
      kernels<T>().take_row(own, tile, r);
    }
  });
  for (const std::vector<T>& met : maxima)
    for (index_t i = 0; i < n; ++i) farthest[i] = std::max(farthest[i], met[i]);
  // Lists are sorted by distance and index, so the result does not depend on the workers.
  const Lists<T> merged = lists[0].view();
  parallel_blocks(n, 1024, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      for (size_t w = 1; w < lists.size(); ++w) {
        for (index_t slot = 0; slot < lists[w].found[i]; ++slot)
          merged.insert(i, lists[w].distance[i * lists[w].k + slot],
                        lists[w].index[i * lists[w].k + slot]);
      }
      std::copy_n(merged.index + i * merged.k, merged.found[i], knn + i * k);
    }
  });
}

template void stream_neighbours(const DistanceRows<float>&, index_t, bool, index_t*, float*);
template void stream_neighbours(const DistanceRows<double>&, index_t, bool, index_t*, double*);

}  // namespace setok
