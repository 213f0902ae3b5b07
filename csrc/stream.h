// Neighbours and parents of images too large for a distance matrix: a loop over panels of the
// triangle of inner products consumes each one by rows and by columns.

#pragma once

#include "common.h"
#include "features.h"

namespace setok {

// Writes knn (n, k): neighbours of every token in ascending order, -1 after the last.
template <class T>
void stream_neighbours(const Features<T>& tokens, bool all_zero, index_t k, bool include_self,
                       index_t* knn);

// Writes parent (n,): nearest token of higher order, -1 for the top token. `farthest` (n,), unless
// null, receives the maximum distance of each token.
template <class T>
void stream_parents(const Features<T>& tokens, bool all_zero, const T* density, index_t* parent,
                    T* farthest);

}  // namespace setok
