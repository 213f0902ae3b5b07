// State of the scope loop (SeTok, Algorithm 1).

#pragma once

#include "common.h"

namespace setok {

// Fills in what follows from the options and the score.
template <class T>
void set_options(ScopeState<T>& state, const Options& options);

// Takes the step: the next scope becomes the scope, and `row` the label where the mask is largest.
template <class T>
void commit(ScopeState<T>& state, index_t row);

}  // namespace setok
