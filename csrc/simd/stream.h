// Consumption of tiles of distances by rows and by columns.

#pragma once

#include "delta.h"
#include "math.h"
#include "types.h"

namespace setok::SETOK_ISA {
namespace {

// True if any lane is at most its bound.
template <class T>
SETOK_INLINE bool any_within(const T* d, const T* bound) {
  int any = 0;
#pragma omp simd reduction(| : any)
  for (index_t lane = 0; lane < kLanes; ++lane) any |= d[lane] <= bound[lane];
  return any != 0;
}

template <class T>
void take_row(const Lists<T>& lists, const Tile<T>& tile, index_t r) {
  const index_t i = tile.top + r;
  const T* d = tile.distance + r * tile.ld;
  for (index_t block = 0; block < tile.columns; block += kLanes) {
    T bound[kLanes];
    for (index_t lane = 0; lane < kLanes; ++lane) bound[lane] = lists.bound[i];
    if (any_within(d + block, bound)) {
      const index_t end = min_of(block + kLanes, tile.columns);
      for (index_t c = block; c < end; ++c)
        if (d[c] <= lists.bound[i] && d[c] < kFar<T>) lists.insert(i, d[c], tile.left + c);
    }
    if (tile.diagonal) continue;
    const T* bounds = lists.bound + tile.left + block;
    if (any_within(d + block, bounds)) {
      const index_t end = min_of(block + kLanes, tile.columns);
      for (index_t c = block; c < end; ++c)
        if (d[c] <= bounds[c - block]) lists.insert(tile.left + c, d[c], i);
    }
  }
}

template <class T>
void take_farthest(T* farthest, const Tile<T>& tile, index_t r) {
  const T* d = tile.distance + r * tile.ld;
  T* own = farthest + tile.top + r;
  *own = max_of(*own, largest_of(d, tile.columns));
  if (tile.diagonal) return;
  T* other = farthest + tile.left;
#pragma omp simd
  for (index_t c = 0; c < padded(tile.columns); ++c) other[c] = d[c] > other[c] ? d[c] : other[c];
}

}  // namespace
}  // namespace setok::SETOK_ISA
