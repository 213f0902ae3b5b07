// State of the scope loop (SeTok, Algorithm 1).

#pragma once

#include "common.h"

namespace setok {

// Initialises the state from the options and the score.
template <class T>
void set_options(ScopeState<T>& state, const Options& options);

// Accepts a step: `next` becomes the scope, and `row` the label where its mask is the maximum.
template <class T>
void commit(ScopeState<T>& state, index_t row);

}  // namespace setok
