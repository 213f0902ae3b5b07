// Seed score, and the scope loop with its alpha masks (SeTok, Algorithm 1).

#pragma once

#include "common.h"

namespace setok {

// Vectors over the tokens of one image, all padded to whole groups of lanes with zeros.
template <class T>
struct ScopeState {
  index_t width;
  T sigma;          // scale of the distances
  const T* number;  // 0, 1, 2, ...: indices of the same width as the rest
  const T* score;
  T* threshold;  // (offset + beta * score) * steep
  T* scope;      // z
  T* next;       // z * (1 - alpha) of the step at hand
  T* mask;       // z * alpha of the step at hand
  T* eligible;   // 1 where the token may be a seed, else 0
  T* best;       // largest mask so far, from -1 on
  T* label;      // its row
  T far = 0;     // where distances are cut off
  T log2e = 0, bandwidth = 0, beta = 0;
  T steep = 0;  // log2(e) / temperature: the sigmoid is 1 / (1 + 2**(threshold - steep * phi))
};

template <class T>
struct Priority {
  index_t token;  // first eligible token of the largest scope * score; -1 without any
  T scope;        // sum of the scope
};

// Fills in what follows from the options and the score.
template <class T>
void set_options(ScopeState<T>& state, const Options& options);

// Mask and next scope for a seed whose row of distances is `row`; returns the sum of the mask.
template <class T>
T scope_step(ScopeState<T>& state, Kernel kernel, Alpha alpha, const T* row);

// Takes the step: the next scope becomes the scope, and `row` the label where the mask is largest.
template <class T>
void commit(ScopeState<T>& state, index_t row);

template <class T>
Priority<T> priority(const ScopeState<T>& state);

}  // namespace setok
