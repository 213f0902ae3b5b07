// What merging and its gradients have in common.

#pragma once

#include "common.h"

namespace setok {

bool is_finite(const float* x, index_t dim);
bool is_finite(const double* x, index_t dim);

// sum += weight * x.
void accumulate(float* sum, const float* x, float weight, index_t dim);
void accumulate(double* sum, const double* x, double weight, index_t dim);

}  // namespace setok
