// The nearest of several centres, for the hard clusterings.

#pragma once

#include "common.h"

namespace setok {

// Goes on with centre `number`, whose distances from `count` tokens are `row`: where it is nearer
// than all before, `least` is its distance and `nearest` its number. Ties stay with the first.
void take_centre(const float* row, index_t count, index_t number, float* least, float* nearest);
void take_centre(const double* row, index_t count, index_t number, double* least, double* nearest);

}  // namespace setok
