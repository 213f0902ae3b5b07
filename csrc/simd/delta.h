// Nearest tokens of higher order (SeTok, Eq. 2), and largest distances.

#pragma once

#include "types.h"

namespace setok::SETOK_ISA {
namespace {

// j precedes i when its density is higher, or equal and j < i. Indices are compared as numbers of
// the same width as the densities, so that one vector mask serves both.
template <class T>
SETOK_INLINE bool precedes(T other, T own, T j, T i) {
  return (other > own) | ((other == own) & (j < i));
}

template <class T>
index_t nearest_higher(const T* row, const T* density, const T* number, index_t n, index_t i) {
  constexpr T none = std::numeric_limits<T>::infinity();
  const T own = density[i], me = number[i];
  const index_t width = padded(n);
  T least[kLanes];
  for (index_t lane = 0; lane < kLanes; ++lane) least[lane] = none;
  for (index_t block = 0; block < width; block += kLanes) {
#pragma omp simd
    for (index_t lane = 0; lane < kLanes; ++lane) {
      const index_t j = block + lane;
      const T d = precedes(density[j], own, number[j], me) ? row[j] : none;
      least[lane] = d < least[lane] ? d : least[lane];
    }
  }
  T best = none;
  for (index_t lane = 0; lane < kLanes; ++lane) best = least[lane] < best ? least[lane] : best;
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
  T most[kLanes] = {};
  const index_t whole = n / kLanes * kLanes;
  for (index_t block = 0; block < whole; block += kLanes) {
#pragma omp simd
    for (index_t lane = 0; lane < kLanes; ++lane)
      most[lane] = row[block + lane] > most[lane] ? row[block + lane] : most[lane];
  }
  for (index_t j = whole; j < n; ++j) most[0] = row[j] > most[0] ? row[j] : most[0];
  for (index_t lane = 1; lane < kLanes; ++lane)
    most[0] = most[lane] > most[0] ? most[lane] : most[0];
  return most[0];
}

}  // namespace
}  // namespace setok::SETOK_ISA
