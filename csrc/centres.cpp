#include "centres.h"

namespace setok {
namespace {

template <class T>
SETOK_INLINE void take(const T* row, index_t count, index_t number, T* least, T* nearest) {
  // A number of the same width as the distances, so that one vector mask serves both.
  const T own = static_cast<T>(number);
#pragma omp simd
  for (index_t i = 0; i < count; ++i) {
    const bool nearer = row[i] < least[i];
    least[i] = nearer ? row[i] : least[i];
    nearest[i] = nearer ? own : nearest[i];
  }
}

#define SETOK_TAKE(T)                                                                            \
  SETOK_CLONES void take_of(const T* row, index_t count, index_t number, T* least, T* nearest) { \
    take(row, count, number, least, nearest);                                                    \
  }
SETOK_TAKE(float)
SETOK_TAKE(double)
#undef SETOK_TAKE

}  // namespace

void take_centre(const float* row, index_t count, index_t number, float* least, float* nearest) {
  take_of(row, count, number, least, nearest);
}
void take_centre(const double* row, index_t count, index_t number, double* least, double* nearest) {
  take_of(row, count, number, least, nearest);
}

}  // namespace setok
