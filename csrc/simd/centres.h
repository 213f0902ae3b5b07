// Nearest of several centres, for the hard clusterings.

#pragma once

#include "types.h"

namespace setok::SETOK_ISA {
namespace {

template <class T>
void take_centre(const T* row, index_t count, index_t number, T* distance, T* nearest) {
  // A number of the same width as the distances, so that one vector mask serves both.
  const T own = static_cast<T>(number);
#pragma omp simd
  for (index_t i = 0; i < count; ++i) {
    const bool nearer = row[i] < distance[i];
    distance[i] = nearer ? row[i] : distance[i];
    nearest[i] = nearer ? own : nearest[i];
  }
}

}  // namespace
}  // namespace setok::SETOK_ISA
