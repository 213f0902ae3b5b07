// Gradients of the scope loop (SeTok, Algorithm 1), from the last seed to the first.

#pragma once

#include "common.h"

namespace setok {

// Sums over seeds and tokens of the gradient of the level, alone and times the factors of the
// hyper-parameters' gradients.
struct ScopeSums {
  double alone, score, level, reach;
};

template <class T>
struct ScopeBackward {
  const Options& options;
  T sigma, slope;           // see `Features`
  const index_t* position;  // positions of the tokens in the image; null if identical
  index_t n, mask_stride;
  const T *score, *masks, *grad_masks;  // values of the image
  const index_t* row;                   // (live,) rows of the masks that have a seed, below count
  index_t live, count;                  // `count` is the row of the residual
  T* distance;                          // (live, ld) to the seeds; becomes twice its gradient
  index_t ld;
  T* level_grad;  // (padded(n),) sum over the seeds of the gradient of the level
};

// Inverse of the temperature, or 1 for alpha="kernel", which has no temperature.
template <class T>
double inverse_temperature(const Options& options);

// Processes the tokens [begin, end) of a block of at most kScopeBlock.
template <class T>
ScopeSums scope_backward(const ScopeBackward<T>& image, index_t begin, index_t end);

}  // namespace setok
