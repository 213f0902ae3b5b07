// Neighbours in images too large for a distance matrix: a loop over panels of the triangle of inner
// products consumes each one by rows and by columns.

#pragma once

#include "common.h"
#include "rows.h"

namespace setok {

// Writes knn (n, k): neighbours of every token in ascending order, -1 after the last. `farthest`
// (n,), unless null, receives the maximum distance of each token.
template <class T>
void stream_neighbours(const DistanceRows<T>& rows, index_t k, bool include_self, index_t* knn,
                       T* farthest);

}  // namespace setok
