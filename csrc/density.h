// Squared distances, nearest neighbours and local density (SeTok, Eq. 1).

#pragma once

#include "common.h"
#include "features.h"

namespace setok {

// Stands in columns behind the last token: no neighbour is as far, and it is finite so that
// products with 0 are 0.
template <class T>
constexpr T kFar = std::numeric_limits<T>::max();

// The k smallest of what it was given, ties lowest index; `distance` and `index` hold k each.
template <class T>
struct Nearest {
  T* distance;
  index_t* index;
  index_t k, found;

  // Candidates may come in any order: equal distances are told apart by index.
  void insert(T d, index_t i) {
    if (found == k && !before(d, i, distance[k - 1], index[k - 1])) return;
    index_t at = found < k ? found++ : k - 1;
    for (; at > 0 && before(d, i, distance[at - 1], index[at - 1]); --at) {
      distance[at] = distance[at - 1];
      index[at] = index[at - 1];
    }
    distance[at] = d;
    index[at] = i;
  }

  static bool before(T d, index_t i, T other, index_t j) {
    return d < other || (d == other && i < j);
  }
};

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

// tile = to = max(0, row_norm + column_norm - 2 tile), where rows of `to` are `ld` apart.
void finish_tile(float* tile, const float* row_norm, const float* column_norm, float* to,
                 index_t ld);
void finish_tile(double* tile, const double* row_norm, const double* column_norm, double* to,
                 index_t ld);

}  // namespace setok
