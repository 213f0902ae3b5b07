// Positions of the small values of a row, without a branch per value.

#pragma once

#include "common.h"

namespace setok {

// Writes the j in [0, width) with row[j] <= bound into `found` in ascending order; returns how
// many. `found` has room for width + kLanes; width is a multiple of kLanes.
index_t select_within(const float* row, index_t width, float bound, int32_t* found);
index_t select_within(const double* row, index_t width, double bound, int32_t* found);

}  // namespace setok
