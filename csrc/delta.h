// Order of the tokens and distance to the nearest token of higher order (SeTok, Eq. 2).

#pragma once

#include "common.h"

namespace setok {

// Nearest token of higher order than i, ties lowest index; -1 for the top token. `row` is the row
// of distances of i; `density` and `number` (0, 1, 2, ...) are padded, density with -infinity.
index_t nearest_higher(const float* row, const float* density, const float* number, index_t n,
                       index_t i);
index_t nearest_higher(const double* row, const double* density, const double* number, index_t n,
                       index_t i);

// Largest of the n distances of a row, 0 without any.
float largest_of(const float* row, index_t n);
double largest_of(const double* row, index_t n);

}  // namespace setok
