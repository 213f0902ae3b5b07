// Nearest tokens of higher order (SeTok, Eq. 2), and maximum distances.

#pragma once

#include "types.h"

namespace setok::SETOK_ISA {
namespace {

// Token j precedes i if its density is higher, or equal and j < i. Indices have the same width as
// densities, so that one vector mask serves both.
template <class T>
SETOK_INLINE bool precedes(T other, T own, T j, T i) {
  return (other > own) | ((other == own) & (j < i));
}

template <class T>
index_t nearest_higher(const T* row, const T* density, const T* number, index_t n, index_t i) {
  constexpr T none = std::numeric_limits<T>::infinity();
  const T own = density[i], me = number[i];
  const index_t width = padded(n);
  T minima[kLanes];
  for (index_t lane = 0; lane < kLanes; ++lane) minima[lane] = none;
  for (index_t block = 0; block < width; block += kLanes) {
#pragma omp simd
    for (index_t lane = 0; lane < kLanes; ++lane) {
      const index_t j = block + lane;
      const T d = precedes(density[j], own, number[j], me) ? row[j] : none;
      minima[lane] = d < minima[lane] ? d : minima[lane];
    }
  }
  T best = none;
  for (index_t lane = 0; lane < kLanes; ++lane) best = minima[lane] < best ? minima[lane] : best;
  if (best == none) return -1;
  for (index_t block = 0; block < width; block += kLanes) {
    int any = 0;
#pragma omp simd reduction(| : any)
    for (index_t lane = 0; lane < kLanes; ++lane) any |= row[block + lane] == best;
    if (any == 0) continue;
    for (index_t j = block; j < block + kLanes; ++j)
      if (row[j] == best && precedes(density[j], own, number[j], me)) return j;
  }
  return -1;
}

template <class T>
T largest_of(const T* row, index_t n) {
  T maxima[kLanes] = {};
  const index_t whole = n / kLanes * kLanes;
  for (index_t block = 0; block < whole; block += kLanes) {
#pragma omp simd
    for (index_t lane = 0; lane < kLanes; ++lane)
      maxima[lane] = row[block + lane] > maxima[lane] ? row[block + lane] : maxima[lane];
  }
  for (index_t j = whole; j < n; ++j) maxima[0] = row[j] > maxima[0] ? row[j] : maxima[0];
  for (index_t lane = 1; lane < kLanes; ++lane)
    maxima[0] = maxima[lane] > maxima[0] ? maxima[lane] : maxima[0];
  return maxima[0];
}

}  // namespace
}  // namespace setok::SETOK_ISA
