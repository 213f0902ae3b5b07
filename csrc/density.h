// Squared distances, nearest neighbours and local density (SeTok, Eq. 1).

#pragma once

#include "common.h"
#include "features.h"

namespace setok {

// Computes (ld, ld) squared distances of n tokens, exactly symmetric, 0 on the diagonal and between
// equal tokens, kFar in the columns from n on. ld is a multiple of the panel. all_zero sets all of
// them to 0.
template <class T>
void distance_matrix(const Features<T>& tokens, bool all_zero, T* distance, index_t ld,
                     Scratch& scratch);

// Computes distance rows, `ld` apart, of the tokens x (count, dim), bit-equal to the matrix;
// `distance` has room for whole panels of rows. `norm` has those of all tokens, or is null.
template <class T>
void distance_rows(const Features<T>& tokens, const T* norm, bool all_zero, const T* x,
                   index_t count, T* distance, index_t ld, Scratch& scratch);

// Computes norm (count,), a multiple of the panel: squared norms of all tokens, kFar after the
// last.
template <class T>
void norms_of_tokens(const Features<T>& tokens, index_t count, T* norm);

// Writes the neighbours of token i into knn (k,), -1 after the last. `row` is its distance row, and
// `candidate` has room for padded(n) + kLanes.
template <class T>
void nearest_in_row(const T* row, index_t n, index_t i, index_t k, bool include_self, index_t* knn,
                    int32_t* candidate);

// rho = exp(-sigma * sum / found) for the sum of the distances to `found` neighbours; 1 without
// neighbours.
template <class T>
T local_density(T sum, index_t found, T sigma);

// norm (kPanel,) from the tile of inner products of a panel of `count` tokens with itself, kFar
// after the last token, so that its columns become kFar.
template <class T>
void norms_of_panel(const T* tile, index_t count, T* norm);

}  // namespace setok
