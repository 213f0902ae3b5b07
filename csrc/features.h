// The tokens of one image that take part, as a dense matrix, and what depends on nothing else:
// the scale of the distances.

#pragma once

#include "common.h"

namespace setok {

enum class Dtype { f64, f32, bf16, f16 };
inline size_t bytes_of(Dtype dtype) {
  return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2;
}

// One image of the input: `tokens` rows of `dim` contiguous numbers.
struct ImageInput {
  const void* x;
  Dtype dtype;
  const bool* valid;  // (tokens,) or null where all are
  index_t tokens, dim;
};

// (n, dim) finite tokens in range, T being float or double. Positions in the image are ascending,
// so "lowest index" means the same in both numberings.
template <class T>
struct Features {
  const T* x;
  index_t n, dim;
  const index_t* position;  // (n,) place of each token in the image; null where it is the same
  T sigma;                  // scale of the squared distances
  int exponent;             // tokens of the image are x times 2**exponent
  T slope;                  // of scaled distances: their gradient by the tokens of the image is
                            // slope times that of the squared distances by these tokens

  index_t place(index_t i) const { return position == nullptr ? i : position[i]; }
};

// Token `row` of the image, converted.
template <class T>
void load_row(const ImageInput& image, index_t row, T* to);

template <class T>
Features<T> load_features(const ImageInput& image, const Options& options, Scratch& scratch);

}  // namespace setok
