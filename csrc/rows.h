// Distance rows of one image, read from a matrix or computed in blocks.

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
  index_t ld;       // a multiple of the panel
  const T* norm;    // (ld,) squared norms, without a matrix

  bool dense() const { return matrix != nullptr; }

  T pair(index_t i, index_t j) const {
    if (dense()) return matrix[i * ld + j];
    if (all_zero) return 0;
    return kernels<T>().squared_distance(tokens.x + i * tokens.dim, tokens.x + j * tokens.dim,
                                         tokens.dim);
  }

  // Row of one token; without a matrix until the next row or block.
  const T* row(index_t i) const { return dense() ? matrix + i * ld : block(&i, 1); }

  // Without a matrix: rows of `count` tokens, `ld` apart, until the next row or block. A block
  // takes little longer than a row, because both read all tokens.
  const T* block(const index_t* chosen, index_t count) const {
    Scratch& scratch = Scratch::of_this_thread();
    const index_t dim = tokens.dim;
    T* x = scratch.get<T>(Scratch::seeds, count * dim);
    for (index_t c = 0; c < count; ++c) std::copy_n(tokens.x + chosen[c] * dim, dim, x + c * dim);
    T* distance = scratch.get<T>(Scratch::distances, panels_of(count) * kPanel * ld);
    distance_rows(tokens, norm, all_zero, x, count, distance, ld, scratch);
    return distance;
  }
};

}  // namespace setok
