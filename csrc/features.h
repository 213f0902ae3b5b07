// Usable tokens of one image as a dense matrix, and the scale of their distances.

#pragma once

#include "common.h"
#include "simd/kernels.h"

namespace setok {

enum class Dtype { f64, f32, bf16, f16 };
inline size_t bytes_of(Dtype dtype) {
  return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2;
}

// Image of the input: `tokens` rows of `dim` contiguous features.
struct ImageInput {
  const void* x;
  Dtype dtype;
  const bool* valid;  // (tokens,) or null if all are valid
  index_t tokens, dim;
};

// (n, dim) finite tokens in range; T is float or double. Positions in the image are ascending, so
// "lowest index" means the same in both numberings.
template <class T>
struct Features {
  const T* x;
  index_t n, dim;
  const index_t* position;  // (n,) position of each token in the image; null if identical
  T sigma;                  // scale of the squared distances
  int exponent;             // tokens of the image are x times 2**exponent
  T slope;                  // gradient of scaled distances by the image's tokens, over that of
                            // squared distances by these tokens
  bool bf16;                // products by the kernels for bfloat16

  index_t position_of(index_t i) const { return position == nullptr ? i : position[i]; }

  // Panel (kPanel, dim) of rows of these tokens, at most `count`.
  void pack(const T* rows, index_t count, T* panel) const {
    (bf16 ? kernels<T>().pack_bf16 : kernels<T>().pack_panel)(rows, dim, count, dim, panel);
  }

  // Inner products of two such panels.
  void multiply(const T* a, const T* b, T* tile, index_t rows) const {
    (bf16 ? kernels<T>().multiply_bf16 : kernels<T>().multiply_panels)(a, b, dim, tile, rows);
  }
};

// Loads token `row` of the image with conversion.
template <class T>
void load_row(const ImageInput& image, index_t row, T* to);

template <class T>
Features<T> load_features(const ImageInput& image, const Options& options, Scratch& scratch);

}  // namespace setok
