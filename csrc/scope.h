// Seed score, and the scope loop with its alpha masks (SeTok, Algorithm 1).

#pragma once

#include "common.h"

namespace setok {

// Vectors over the tokens of one image, all padded to whole groups of lanes with zeros.
template <class T>
struct ScopeState {
  index_t width;
  T sigma, far;  // scale of the distances, and where they are cut off
  T bandwidth, beta, temperature, offset;
  const T* score;
  T* scope;     // z
  T* next;      // z * (1 - alpha) of the step at hand
  T* mask;      // z * alpha of the step at hand
  T* eligible;  // 1 where the token may be a seed, else 0
  T* best;      // largest mask so far, from -1 on
  T* label;     // its row
};

template <class T>
struct Priority {
  T largest;  // of scope * score over the eligible tokens; -1 without any
  T scope;    // sum of the scope
};

// Mask and next scope for a seed whose row of distances is `row`.
template <class T>
void scope_step(ScopeState<T>& state, Kernel kernel, Alpha alpha, const T* row);

// Sum of the mask, in an order that depends on nothing.
template <class T>
T mask_mass(const ScopeState<T>& state);

// Takes the step: the next scope becomes the scope, and `row` the label where the mask is largest.
template <class T>
void commit(ScopeState<T>& state, index_t row);

template <class T>
Priority<T> priority(const ScopeState<T>& state);

// First eligible token whose scope * score is `largest`.
template <class T>
index_t token_of(const ScopeState<T>& state, T largest);

}  // namespace setok
