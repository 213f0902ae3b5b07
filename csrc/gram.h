// Inner products of tokens by torch's matrix product, and distances where that would not pay.

#pragma once

#include "common.h"

namespace setok {

// out (rows, columns) with row stride `ld` = a (rows, dim) b (columns, dim)^T.
template <class T>
void product(const T* a, index_t rows, const T* b, index_t columns, index_t dim, T* out,
             index_t ld);

// Height of the row panels that a symmetric product is walked in, whole groups of lanes.
index_t panel_height(index_t n);

// Upper triangle of x x^T, in row panels from the diagonal block on; out is (padded(n), ld).
template <class T>
void upper_gram(const T* x, index_t n, index_t dim, T* out, index_t ld);

// (n, ld) squared distances by the differences, for few numbers.
void small_distances(const float* x, index_t n, index_t dim, float* out, index_t ld);
void small_distances(const double* x, index_t n, index_t dim, double* out, index_t ld);

// ||a - b||^2, by the differences.
double squared_distance(const double* a, const double* b, index_t dim);
float squared_distance(const float* a, const float* b, index_t dim);

}  // namespace setok
