// Rows of a tile, and their positions in shared memory.
#pragma once

#include "lanes.h"

// The pattern depends on the address itself, not on the start of the tile.
static inline uint32_t swizzled(uint32_t address, uint32_t swizzle) {
  static const uint32_t bits[] = {0, 1, 3, 7};
  return address ^ (address >> 7 & bits[swizzle]) << 4;
}

// For each row of the tile: its number, the address of its first element inside of the tensor, and
// which of its elements are inside, from `low` to before `high`.
template <class F>
static void for_rows(const Bulk& b, F f) {
  const TensorMap& map = b.map;
  int rows = 1;
  for (uint32_t d = 1; d <= map.rank; d++) rows *= map.box[d];
  int64_t low = std::max<int64_t>(0, -(int64_t)b.at[0]);
  int64_t high = std::min<int64_t>(map.box[0], (int64_t)map.dim[0] - b.at[0]);
  for (int row = 0; row < rows; row++) {
    uint64_t address = map.address;
    bool inside = true;
    for (uint32_t d = 1, rest = row; d <= map.rank; d++) {
      int64_t i = (int64_t)b.at[d] + rest % map.box[d];
      rest /= map.box[d];
      inside &= i >= 0 && i < (int64_t)map.dim[d];
      address += i * map.stride[d - 1];
    }
    address += (b.at[0] + low) * b.elem_bytes;
    f(row, address, inside ? low : 0, inside ? std::max(low, high) : 0);
  }
}

// Maps every 16 bytes of a row to their swizzled position.
template <class F>
static void for_chunks(const Bulk& b, int64_t shared_base, int row, F f) {
  int inner = b.map.box[0] * b.elem_bytes;
  for (int i = 0; i < inner; i += 16) {
    uint32_t address = b.base + (uint32_t)shared_base + row * inner + i;
    f(i, swizzled(address, b.map.swizzle) - (uint32_t)shared_base);
  }
}
