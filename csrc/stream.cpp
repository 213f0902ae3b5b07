#include "stream.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "density.h"
#include "gram.h"

namespace setok {
namespace {

// Side of the square tiles: one of float fits into an L2 cache of 1 MB.
constexpr index_t kTile = 512;

// Tile (rows from `top`, columns from `left`) of the distances; ld is kTile.
template <class T>
struct Tile {
  T* distance;
  index_t top, left, rows, columns;
};

// Calls consume(worker, tile) for all tiles of the upper triangle. Each worker gets its tiles in
// row-major order, so every token meets the others in ascending order.
template <class T, class F>
void walk(const Features<T>& tokens, bool include_self, const F& consume) {
  const index_t n = tokens.n, dim = tokens.dim, side = (n + kTile - 1) / kTile;
  Scratch& scratch = Scratch::of_this_thread();
  T* norm = scratch.get<T>(Scratch::norm, side * kTile);
  const std::vector<T> zero(dim, T{0});
  std::fill_n(norm, side * kTile, T{0});
  parallel_blocks(n, 256, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i)
      norm[i] = squared_distance(tokens.x + i * dim, zero.data(), dim);
  });
  std::atomic<index_t> next{0};
  const index_t tiles = side * (side + 1) / 2;
  parallel_tasks(num_threads(), [&](index_t worker) {
    T* buffer = Scratch::of_this_thread().get<T>(Scratch::panel, kTile * kTile);
    for (index_t t = next++; t < tiles; t = next++) {
      index_t row = 0, column = t;
      while (column >= side - row) column -= side - row++;
      column += row;
      const index_t top = row * kTile, left = column * kTile;
      const Tile<T> tile{buffer, top, left, std::min(kTile, n - top), std::min(kTile, n - left)};
      product(tokens.x + top * dim, tile.rows, tokens.x + left * dim, tile.columns, dim, buffer,
              kTile);
      for (index_t r = 0; r < tile.rows; ++r) {
        T* d = buffer + r * kTile;
        finish_row(d, norm[top + r], norm + left, padded(tile.columns));
        std::fill(d + tile.columns, d + padded(tile.columns), kFar<T>);
        if (tokens.first != nullptr) {
          for (index_t c = 0; c < tile.columns; ++c)
            if (tokens.first[left + c] == tokens.first[top + r]) d[c] = 0;
        }
        if (top == left) d[r] = include_self ? 0 : kFar<T>;
      }
      consume(worker, tile);
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
  std::vector<T> distance, bound;  // (n, k); (n + kTile,) distance of the last of a full list
  std::vector<index_t> index, found;

  Lists(index_t n, index_t k)
      : k(k), distance(n * k), bound(n + kTile, kFar<T>), index(n * k), found(n, 0) {}

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
  const T* d = tile.distance + r * kTile;
  for (index_t block = 0; block < tile.columns; block += kLanes) {
    T bound[kLanes];
    for (index_t lane = 0; lane < kLanes; ++lane) bound[lane] = lists.bound[i];
    if (any_within(d + block, bound)) {
      const index_t end = std::min(block + kLanes, tile.columns);
      for (index_t c = block; c < end; ++c)
        if (d[c] <= lists.bound[i] && d[c] < kFar<T>) lists.insert(i, d[c], tile.left + c);
    }
    if (tile.top == tile.left) continue;
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
  std::vector<T> distance, index;  // (n + kTile,)

  explicit Higher(index_t n)
      : distance(n + kTile, std::numeric_limits<T>::infinity()), index(n + kTile, T{-1}) {}
};

template <class T>
SETOK_INLINE void take_parents(Higher<T>& higher, const Tile<T>& tile, const T* density,
                               index_t r) {
  const index_t i = tile.top + r, width = padded(tile.columns);
  const T own = density[i], me = static_cast<T>(i), none = std::numeric_limits<T>::infinity();
  const T* d = tile.distance + r * kTile;
  const T* other = density + tile.left;
  const bool diagonal = tile.top == tile.left;
  // Within a diagonal tile j < i is c < r; to the right of it no column comes before the row.
  T least[kLanes];
  for (index_t lane = 0; lane < kLanes; ++lane) least[lane] = none;
  const index_t before = diagonal ? r : 0;
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
  if (diagonal) return;
  T* distance = higher.distance.data() + tile.left;
  T* index = higher.index.data() + tile.left;
#pragma omp simd
  for (index_t c = 0; c < width; ++c) {
    const bool nearer = (own >= other[c]) & (d[c] < distance[c]);
    distance[c] = nearer ? d[c] : distance[c];
    index[c] = nearer ? me : index[c];
  }
}

#define SETOK_STREAM(T)                                                                       \
  SETOK_CLONES void take_row_of(Lists<T>& lists, const Tile<T>& tile, index_t r) {            \
    take_row(lists, tile, r);                                                                 \
  }                                                                                           \
  SETOK_CLONES void take_parents_of(Higher<T>& higher, const Tile<T>& tile, const T* density, \
                                    index_t r) {                                              \
    take_parents(higher, tile, density, r);                                                   \
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
void stream_parents(const Features<T>& tokens, bool all_zero, const T* density, index_t* parent) {
  const index_t n = tokens.n;
  if (all_zero) {
    std::fill_n(parent, n, index_t{0});
    parent[0] = -1;
    return;
  }
  // Columns behind the last token precede nothing.
  std::vector<T> order(n + kTile, T{-1});
  std::copy_n(density, n, order.begin());
  std::vector<Higher<T>> higher(num_threads(), Higher<T>(n));
  walk(tokens, true, [&](index_t worker, const Tile<T>& tile) {
    for (index_t r = 0; r < tile.rows; ++r) take_parents_of(higher[worker], tile, order.data(), r);
  });
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
template void stream_parents(const Features<float>&, bool, const float*, index_t*);
template void stream_parents(const Features<double>&, bool, const double*, index_t*);

}  // namespace setok
