// Distance rows of one image, read from a matrix or recomputed.

#pragma once

#include <algorithm>

#include "common.h"
#include "density.h"
#include "features.h"
#include "simd/kernels.h"

namespace setok {

template <class T>
struct DistanceRows {
  const Features<T>& tokens;
  bool all_zero;
  const T* matrix;  // (n, ld), null if rows are computed
  index_t ld;
  T* buffer;  // (padded(n),), without a matrix

  T pair(index_t i, index_t j) const {
    if (matrix != nullptr) return matrix[i * ld + j];
    if (all_zero) return 0;
    return kernels<T>().squared_distance(tokens.x + i * tokens.dim, tokens.x + j * tokens.dim,
                                         tokens.dim);
  }

  const T* row(index_t i) const {
    if (matrix != nullptr) return matrix + i * ld;
    const index_t n = tokens.n;
    parallel_blocks(n, 256, [&](index_t begin, index_t end) {
      for (index_t j = begin; j < end; ++j) buffer[j] = pair(i, j);
    });
    std::fill(buffer + n, buffer + padded(n), kFar<T>);
    return buffer;
  }
};

}  // namespace setok
