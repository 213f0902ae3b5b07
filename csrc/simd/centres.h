// The nearest of several centres, for the hard clusterings.

#pragma once

#include "types.h"

namespace setok::SETOK_ISA {
namespace {

template <class T>
void take_centre(const T* row, index_t count, index_t number, T* least, T* nearest) {
  // A number of the same width as the distances, so that one vector mask serves both.
  const T own = static_cast<T>(number);
#pragma omp simd
  for (index_t i = 0; i < count; ++i) {
    const bool nearer = row[i] < least[i];
    least[i] = nearer ? row[i] : least[i];
    nearest[i] = nearer ? own : nearest[i];
  }
}

}  // namespace
}  // namespace setok::SETOK_ISA
