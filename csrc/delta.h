// Order of the tokens and distance to the nearest token of higher order (SeTok, Eq. 2).

#pragma once

#include "common.h"

namespace setok {

// Nearest token of higher order than i, ties lowest index; -1 for the top token. `row` is the row
// of distances of i; `density` and `number` (0, 1, 2, ...) are padded, density with -1.
index_t nearest_higher(const float* row, const float* density, const float* number, index_t n,
                       index_t i);
index_t nearest_higher(const double* row, const double* density, const double* number, index_t n,
                       index_t i);

}  // namespace setok
