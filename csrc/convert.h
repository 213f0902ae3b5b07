// 16-bit floating-point numbers to float and back.

#pragma once

#include "common.h"

namespace setok {

void convert(const uint16_t* from, bool half, float* to, index_t count);

// Rounds to the nearest, ties to even.
void convert(const float* from, bool half, uint16_t* to, index_t count);

}  // namespace setok
