#include "stream.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "delta.h"
#include "density.h"
#include "gram.h"

namespace setok {
namespace {

// Panels of tokens in a strip, and tokens: few enough to stay in an L2 cache.
constexpr index_t kPanels = 16, kStrip = kPanels * kPanel;

// Distances of one panel's tokens (rows from `top`) to a strip's (columns from `left`); ld is
// kStrip.
template <class T>
struct Tile {
  T* distance;
  index_t top, left, rows, columns;
  bool diagonal;  // whether the strip holds the rows' own tokens
};

// A strip of tokens packed into panels.
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
        pack_panel(tokens.x + top * tokens.dim, tokens.dim, std::min(kPanel, tokens.n - top),
                   tokens.dim, panel(p, tokens.dim));
    }
  }

  T* panel(index_t p, index_t dim) const { return packed + p * kPanel * dim; }
};

// (strips * kStrip,) squared norms, kFar behind the last token.
template <class T>
T* norms_of_tokens(const Features<T>& tokens, index_t strips) {
  const index_t n = tokens.n, dim = tokens.dim;
  T* norm = Scratch::of_this_thread().get<T>(Scratch::norm, strips * kStrip);
  std::fill_n(norm, strips * kStrip, kFar<T>);
  parallel_tasks(panels_of(n), [&](index_t p) {
    alignas(64) T tile[kPanel * kPanel];
    T* packed = Scratch::of_this_thread().get<T>(Scratch::packed, kPanel * dim);
    const index_t top = p * kPanel, count = std::min(kPanel, n - top);
    pack_panel(tokens.x + top * dim, dim, count, dim, packed);
    multiply_panels(packed, packed, dim, tile);
    norms_of_panel(tile, count, norm + top);
  });
  return norm;
}

// Calls consume(worker, tile) for all panels against all strips from their own on. Each worker gets
// its tiles in row-major order, so every token meets the others in ascending order.
template <class T, class F>
void walk(const Features<T>& tokens, bool include_self, const F& consume) {
  const index_t n = tokens.n, dim = tokens.dim, strips = (n + kStrip - 1) / kStrip;
  const T* norm = norms_of_tokens(tokens, strips);
  std::atomic<index_t> next{0};
  const index_t pairs = strips * (strips + 1) / 2;
  parallel_tasks(num_threads(), [&](index_t worker) {
    Scratch& scratch = Scratch::of_this_thread();
    alignas(64) T product[kPanel * kPanel];
    T* buffer = scratch.get<T>(Scratch::tile, kPanel * kStrip);
    T* packed = scratch.get<T>(Scratch::packed, 2 * kStrip * dim);
    Strip<T> rows{packed, -1}, columns{packed + kStrip * dim, -1};
    for (index_t pair = next++; pair < pairs; pair = next++) {
      index_t above = 0, right = pair;
      while (right >= strips - above) right -= strips - above++;
      rows.load(tokens, above);
      if (right > 0) columns.load(tokens, above + right);
      const Strip<T>& other = right > 0 ? columns : rows;
      const index_t left = other.strip * kStrip, count = std::min(kStrip, n - left);
      for (index_t p = 0; p < kPanels && above * kStrip + p * kPanel < n; ++p) {
        const index_t top = above * kStrip + p * kPanel;
        for (index_t q = 0; q < panels_of(count); ++q) {
          multiply_panels(rows.panel(p, dim), other.panel(q, dim), dim, product);
          finish_tile(product, norm + top, norm + left + q * kPanel, buffer + q * kPanel, kStrip);
        }
        const Tile<T> tile{buffer, top, left, std::min(kPanel, n - top), count, right == 0};
        if (tile.diagonal && !include_self)
          for (index_t r = 0; r < tile.rows; ++r) buffer[r * kStrip + top - left + r] = kFar<T>;
        consume(worker, tile);
      }
    }
  });
}

// Whether any of the lanes is at most its bound.
template <class T>
SETOK_INLINE bool any_within(const T* d, const T* bound) {
  int any = 0;
#pragma omp simd reduction(| : any)
  for (index_t lane = 0; lane < kLanes; ++lane) any |= d[lane] <= bound[lane];
  return any != 0;
}

// Running lists of one worker.
template <class T>
struct Lists {
  index_t k;
  std::vector<T> distance, bound;  // (n, k); (n + kStrip,) distance of the last of a full list
  std::vector<index_t> index, found;

  Lists(index_t n, index_t k)
      : k(k), distance(n * k), bound(n + kStrip, kFar<T>), index(n * k), found(n, 0) {}

  void insert(index_t token, T d, index_t other) {
    Nearest<T> list{&distance[token * k], &index[token * k], k, found[token]};
    list.insert(d, other);
    found[token] = list.found;
    if (list.found == k) bound[token] = list.distance[k - 1];
  }
};

template <class T>
SETOK_INLINE void take_row(Lists<T>& lists, const Tile<T>& tile, index_t r) {
  const index_t i = tile.top + r;
  const T* d = tile.distance + r * kStrip;
  for (index_t block = 0; block < tile.columns; block += kLanes) {
    T bound[kLanes];
    for (index_t lane = 0; lane < kLanes; ++lane) bound[lane] = lists.bound[i];
    if (any_within(d + block, bound)) {
      const index_t end = std::min(block + kLanes, tile.columns);
      for (index_t c = block; c < end; ++c)
        if (d[c] <= lists.bound[i] && d[c] < kFar<T>) lists.insert(i, d[c], tile.left + c);
    }
    if (tile.diagonal) continue;
    const T* bounds = lists.bound.data() + tile.left + block;
    if (any_within(d + block, bounds)) {
      const index_t end = std::min(block + kLanes, tile.columns);
      for (index_t c = block; c < end; ++c)
        if (d[c] <= bounds[c - block]) lists.insert(tile.left + c, d[c], i);
    }
  }
}

// Nearest tokens of higher order that one worker has met.
template <class T>
struct Higher {
  std::vector<T> distance, index;  // (n + kStrip,)

  explicit Higher(index_t n)
      : distance(n + kStrip, std::numeric_limits<T>::infinity()), index(n + kStrip, T{-1}) {}
};

template <class T>
SETOK_INLINE void take_parents(Higher<T>& higher, const Tile<T>& tile, const T* density,
                               index_t r) {
  const index_t i = tile.top + r, width = padded(tile.columns);
  const T own = density[i], me = static_cast<T>(i), none = std::numeric_limits<T>::infinity();
  const T* d = tile.distance + r * kStrip;
  const T* other = density + tile.left;
  // Columns of the row's own strip may come before it; those of later strips do not.
  T least[kLanes];
  for (index_t lane = 0; lane < kLanes; ++lane) least[lane] = none;
  const index_t before = tile.diagonal ? i - tile.left : 0;
  for (index_t block = 0; block < width; block += kLanes) {
#pragma omp simd
    for (index_t lane = 0; lane < kLanes; ++lane) {
      const index_t c = block + lane;
      const bool precedes = (other[c] > own) | ((other[c] == own) & (c < before));
      const T value = precedes ? d[c] : none;
      least[lane] = value < least[lane] ? value : least[lane];
    }
  }
  T best = none;
  for (index_t lane = 0; lane < kLanes; ++lane) best = std::min(best, least[lane]);
  if (best < higher.distance[i]) {
    index_t c = 0;
    while (d[c] != best || !(other[c] > own || (other[c] == own && c < before))) ++c;
    higher.distance[i] = best;
    higher.index[i] = static_cast<T>(tile.left + c);
  }
  if (tile.diagonal) return;
  T* distance = higher.distance.data() + tile.left;
  T* index = higher.index.data() + tile.left;
#pragma omp simd
  for (index_t c = 0; c < width; ++c) {
    const bool nearer = (own >= other[c]) & (d[c] < distance[c]);
    distance[c] = nearer ? d[c] : distance[c];
    index[c] = nearer ? me : index[c];
  }
}

// Adds a row of a tile to the largest distances that one worker has met, (n + kStrip,).
template <class T>
SETOK_INLINE void take_farthest(T* farthest, const Tile<T>& tile, index_t r) {
  const T* d = tile.distance + r * kStrip;
  T* own = farthest + tile.top + r;
  *own = std::max(*own, largest_of(d, tile.columns));
  if (tile.diagonal) return;
  T* other = farthest + tile.left;
#pragma omp simd
  for (index_t c = 0; c < padded(tile.columns); ++c) other[c] = d[c] > other[c] ? d[c] : other[c];
}

#define SETOK_STREAM(T)                                                                       \
  SETOK_CLONES void take_row_of(Lists<T>& lists, const Tile<T>& tile, index_t r) {            \
    take_row(lists, tile, r);                                                                 \
  }                                                                                           \
  SETOK_CLONES void take_parents_of(Higher<T>& higher, const Tile<T>& tile, const T* density, \
                                    index_t r) {                                              \
    take_parents(higher, tile, density, r);                                                   \
  }                                                                                           \
  SETOK_CLONES void take_farthest_of(T* farthest, const Tile<T>& tile, index_t r) {           \
    take_farthest(farthest, tile, r);                                                         \
  }
SETOK_STREAM(float)
SETOK_STREAM(double)
#undef SETOK_STREAM

}  // namespace

template <class T>
void stream_neighbours(const Features<T>& tokens, bool all_zero, index_t k, bool include_self,
                       index_t* knn) {
  const index_t n = tokens.n;
  std::fill_n(knn, n * k, index_t{-1});
  if (all_zero) {
    for (index_t i = 0; i < n; ++i) {
      index_t slot = 0;
      for (index_t j = 0; j < n && slot < k; ++j)
        if (include_self || j != i) knn[i * k + slot++] = j;
    }
    return;
  }
  std::vector<Lists<T>> lists(num_threads(), Lists<T>(n, std::min(k, n)));
  walk(tokens, include_self, [&](index_t worker, const Tile<T>& tile) {
    for (index_t r = 0; r < tile.rows; ++r) take_row_of(lists[worker], tile, r);
  });
  // Lists are ordered by distance and index, so it does not matter which worker met a neighbour.
  parallel_blocks(n, 1024, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      for (size_t w = 1; w < lists.size(); ++w) {
        for (index_t slot = 0; slot < lists[w].found[i]; ++slot)
          lists[0].insert(i, lists[w].distance[i * lists[w].k + slot],
                          lists[w].index[i * lists[w].k + slot]);
      }
      std::copy_n(&lists[0].index[i * lists[0].k], lists[0].found[i], knn + i * k);
    }
  });
}

template <class T>
void stream_parents(const Features<T>& tokens, bool all_zero, const T* density, index_t* parent,
                    T* farthest) {
  const index_t n = tokens.n;
  if (farthest != nullptr) std::fill_n(farthest, n, T{0});
  if (all_zero) {
    std::fill_n(parent, n, index_t{0});
    parent[0] = -1;
    return;
  }
  // Columns behind the last token precede nothing.
  std::vector<T> order(n + kStrip, -std::numeric_limits<T>::infinity());
  std::copy_n(density, n, order.begin());
  std::vector<Higher<T>> higher(num_threads(), Higher<T>(n));
  std::vector<std::vector<T>> most(farthest == nullptr ? 0 : num_threads(),
                                   std::vector<T>(n + kStrip, T{0}));
  walk(tokens, true, [&](index_t worker, const Tile<T>& tile) {
    for (index_t r = 0; r < tile.rows; ++r) take_parents_of(higher[worker], tile, order.data(), r);
    for (index_t r = 0; r < tile.rows && !most.empty(); ++r)
      take_farthest_of(most[worker].data(), tile, r);
  });
  for (const std::vector<T>& met : most)
    for (index_t i = 0; i < n; ++i) farthest[i] = std::max(farthest[i], met[i]);
  for (index_t i = 0; i < n; ++i) {
    T distance = std::numeric_limits<T>::infinity();
    parent[i] = -1;
    for (const Higher<T>& found : higher) {
      const auto j = static_cast<index_t>(found.index[i]);
      if (j < 0 || !Nearest<T>::before(found.distance[i], j, distance, parent[i])) continue;
      distance = found.distance[i];
      parent[i] = j;
    }
  }
}

template void stream_neighbours(const Features<float>&, bool, index_t, bool, index_t*);
template void stream_neighbours(const Features<double>&, bool, index_t, bool, index_t*);
template void stream_parents(const Features<float>&, bool, const float*, index_t*, float*);
template void stream_parents(const Features<double>&, bool, const double*, index_t*, double*);

}  // namespace setok
