// Gradients of the scope loop (SeTok, Algorithm 1), from the last seed to the first.

#pragma once

#include "common.h"

namespace setok {

// Sums over seeds and tokens of the gradient of the level, alone and times what it is multiplied
// with in the gradients of the options.
struct ScopeSums {
  double alone, score, level, reach;
};

template <class T>
struct ScopeBackward {
  const Options& options;
  T sigma, slope;           // of the features
  const index_t* position;  // of the tokens in the image; null where it is the same
  index_t n, mask_stride;
  const T *score, *masks, *grad_masks;  // of the image
  const index_t* row;                   // (live,) rows of the masks that have a seed, below count
  index_t live, count;                  // `count` is the row of the residual
  T* distance;                          // (live, ld) from the seeds; becomes twice its gradient
  index_t ld;
  T* pull;  // (padded(n),) sum over the seeds of the gradient of the level
};

// Inverse of the temperature, or 1 where alpha is the kernel itself, which has none.
template <class T>
double inverse_temperature(const Options& options);

// Works on the tokens [begin, end) of a block of at most kScopeBlock.
template <class T>
ScopeSums scope_backward(const ScopeBackward<T>& image, index_t begin, index_t end);

}  // namespace setok
