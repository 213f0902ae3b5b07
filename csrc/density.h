// Squared distances, nearest neighbours and local density (SeTok, Eq. 1).

#pragma once

#include "common.h"
#include "features.h"

namespace setok {

// (ld, ld) squared distances of n tokens, exactly symmetric, 0 on the diagonal and between equal
// tokens, kFar in the columns from n on; ld is a whole number of panels. all_zero makes all of them
// 0.
template <class T>
void distance_matrix(const Features<T>& tokens, bool all_zero, T* distance, index_t ld,
                     Scratch& scratch);

// Rows `ld` apart of distances from x (count, dim), some of the tokens, with the bits they have in
// the matrix; `distance` has room for whole panels of rows.
template <class T>
void distance_rows(const Features<T>& tokens, bool all_zero, const T* x, index_t count, T* distance,
                   index_t ld, Scratch& scratch);

// Neighbours of token i into knn (k,), -1 behind the last. `row` is its row of distances, and
// `candidate` has room for padded(n) + kLanes.
template <class T>
void nearest_in_row(const T* row, index_t n, index_t i, index_t k, bool include_self, index_t* knn,
                    int32_t* candidate);

// rho = exp(-sigma * sum / found) for the sum of the distances to `found` neighbours; 1 without
// any.
template <class T>
T local_density(T sum, index_t found, T sigma);

// norm (kPanel,) from the tile of the inner products of a panel of `count` tokens with itself, kFar
// behind the last, which puts kFar into their columns.
template <class T>
void norms_of_panel(const T* tile, index_t count, T* norm);

}  // namespace setok
