#include "delta.h"

namespace setok {
namespace {

// j precedes i when its density is higher, or equal and j < i. Indices are compared as numbers of
// the same width as the densities, so that one vector mask serves both.
template <class T>
SETOK_INLINE bool precedes(T other, T own, T j, T i) {
  return (other > own) | ((other == own) & (j < i));
}

template <class T>
SETOK_INLINE index_t search(const T* row, const T* density, const T* number, index_t n, index_t i) {
  const T own = density[i], me = number[i], none = std::numeric_limits<T>::infinity();
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
SETOK_INLINE T largest(const T* row, index_t n) {
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

#define SETOK_SEARCH(T)                                                                      \
  SETOK_CLONES index_t search_of(const T* row, const T* density, const T* number, index_t n, \
                                 index_t i) {                                                \
    return search(row, density, number, n, i);                                               \
  }                                                                                          \
  SETOK_CLONES T most_of(const T* row, index_t n) { return largest(row, n); }
SETOK_SEARCH(float)
SETOK_SEARCH(double)
#undef SETOK_SEARCH

}  // namespace

index_t nearest_higher(const float* row, const float* density, const float* number, index_t n,
                       index_t i) {
  return search_of(row, density, number, n, i);
}
index_t nearest_higher(const double* row, const double* density, const double* number, index_t n,
                       index_t i) {
  return search_of(row, density, number, n, i);
}

float largest_of(const float* row, index_t n) { return most_of(row, n); }
double largest_of(const double* row, index_t n) { return most_of(row, n); }

}  // namespace setok
