#include "scope.h"

#include <cmath>
#include <utility>

#include "simd_math.h"

namespace setok {
namespace {

template <class T, Kernel kernel>
SETOK_INLINE T similarity(T distance, T bandwidth) {
  if constexpr (kernel == Kernel::gaussian) return vexp(-distance / bandwidth);
  if constexpr (kernel == Kernel::laplacian) return vexp(-std::sqrt(distance) / bandwidth);
  const T phi = 1 - distance / bandwidth;
  return phi > 0 ? phi : 0;
}

template <class T, Kernel kernel, Alpha form>
SETOK_INLINE void step(const ScopeState<T>& state, const T* row) {
  const T sigma = state.sigma, far = state.far, bandwidth = state.bandwidth, beta = state.beta;
  const T temperature = state.temperature, offset = state.offset;
  const T* score = state.score;
  const T* scope = state.scope;
  T* mask = state.mask;
  T* next = state.next;
  // 0.9 log(max), as in the reference: the exponential stays in range.
  const T limit = sizeof(T) == 8 ? T(638.8044416040456) : T(79.85055514686152);
  const index_t width = state.width;
#pragma omp simd
  for (index_t i = 0; i < width; ++i) {
    T d = sigma * row[i];
    d = d > far ? far : d;
    const T phi = similarity<T, kernel>(d, bandwidth);
    T alpha;
    if constexpr (form == Alpha::kernel) {
      alpha = phi - beta * score[i];
      alpha = alpha < T(0.01) ? T(0.01) : alpha;
      alpha = alpha > T(0.99) ? T(0.99) : alpha;
    } else {
      const T level = (phi - offset - beta * score[i]) / temperature;
      alpha = 1 / (1 + vexp(level < -limit ? limit : -level));
    }
    mask[i] = scope[i] * alpha;
    next[i] = scope[i] * (1 - alpha);
  }
}

template <class T, Alpha form>
SETOK_INLINE void step_of_kernel(const ScopeState<T>& state, Kernel kernel, const T* row) {
  if (kernel == Kernel::gaussian) return step<T, Kernel::gaussian, form>(state, row);
  if (kernel == Kernel::laplacian) return step<T, Kernel::laplacian, form>(state, row);
  return step<T, Kernel::epanechnikov, form>(state, row);
}

template <class T>
SETOK_INLINE T total(const T* lanes) {
  T sum[kLanes];
  for (index_t lane = 0; lane < kLanes; ++lane) sum[lane] = lanes[lane];
  for (index_t half = kLanes / 2; half > 0; half /= 2)
    for (index_t lane = 0; lane < half; ++lane) sum[lane] += sum[lane + half];
  return sum[0];
}

template <class T>
SETOK_INLINE T mass(const T* mask, index_t width) {
  T sum[kLanes] = {};
  for (index_t block = 0; block < width; block += kLanes) {
#pragma omp simd
    for (index_t lane = 0; lane < kLanes; ++lane) sum[lane] += mask[block + lane];
  }
  return total(sum);
}

template <class T>
SETOK_INLINE void update_labels(const ScopeState<T>& state, T row) {
  T* best = state.best;
  T* label = state.label;
  const T* mask = state.mask;
  const index_t width = state.width;
#pragma omp simd
  for (index_t i = 0; i < width; ++i) {
    const bool larger = mask[i] > best[i];
    label[i] = larger ? row : label[i];
    best[i] = larger ? mask[i] : best[i];
  }
}

template <class T>
SETOK_INLINE Priority<T> largest_priority(const ScopeState<T>& state) {
  const T* scope = state.scope;
  const T* score = state.score;
  const T* eligible = state.eligible;
  T sum[kLanes] = {}, most[kLanes];
  for (index_t lane = 0; lane < kLanes; ++lane) most[lane] = -1;
  for (index_t block = 0; block < state.width; block += kLanes) {
#pragma omp simd
    for (index_t lane = 0; lane < kLanes; ++lane) {
      const index_t i = block + lane;
      const T value = eligible[i] > 0 ? scope[i] * score[i] : T(-1);
      most[lane] = value > most[lane] ? value : most[lane];
      sum[lane] += scope[i];
    }
  }
  Priority<T> result{-1, total(sum)};
  for (index_t lane = 0; lane < kLanes; ++lane)
    result.largest = most[lane] > result.largest ? most[lane] : result.largest;
  return result;
}

template <class T>
SETOK_INLINE index_t find(const ScopeState<T>& state, T largest) {
  for (index_t block = 0; block < state.width; block += kLanes) {
    int any = 0;
#pragma omp simd reduction(| : any)
    for (index_t lane = 0; lane < kLanes; ++lane) {
      const index_t i = block + lane;
      any |= (state.scope[i] * state.score[i] == largest) & (state.eligible[i] > 0);
    }
    if (any == 0) continue;
    for (index_t i = block; i < block + kLanes; ++i)
      if (state.eligible[i] > 0 && state.scope[i] * state.score[i] == largest) return i;
  }
  return -1;
}

#define SETOK_SCOPE(T)                                                                          \
  SETOK_CLONES void step_of(const ScopeState<T>& state, Kernel kernel, Alpha alpha,             \
                            const T* row) {                                                     \
    if (alpha == Alpha::sigmoid) return step_of_kernel<T, Alpha::sigmoid>(state, kernel, row);  \
    step_of_kernel<T, Alpha::kernel>(state, kernel, row);                                       \
  }                                                                                             \
  SETOK_CLONES T mass_of(const T* mask, index_t width) { return mass(mask, width); }            \
  SETOK_CLONES void labels_of(const ScopeState<T>& state, T row) { update_labels(state, row); } \
  SETOK_CLONES Priority<T> priority_of(const ScopeState<T>& state) {                            \
    return largest_priority(state);                                                             \
  }                                                                                             \
  SETOK_CLONES index_t find_of(const ScopeState<T>& state, T largest) {                         \
    return find(state, largest);                                                                \
  }
SETOK_SCOPE(float)
SETOK_SCOPE(double)
#undef SETOK_SCOPE

}  // namespace

template <class T>
void scope_step(ScopeState<T>& state, Kernel kernel, Alpha alpha, const T* row) {
  step_of(state, kernel, alpha, row);
}

template <class T>
T mask_mass(const ScopeState<T>& state) {
  return mass_of(state.mask, state.width);
}

template <class T>
void commit(ScopeState<T>& state, index_t row) {
  labels_of(state, static_cast<T>(row));
  std::swap(state.scope, state.next);
}

template <class T>
Priority<T> priority(const ScopeState<T>& state) {
  return priority_of(state);
}

template <class T>
index_t token_of(const ScopeState<T>& state, T largest) {
  return find_of(state, largest);
}

#define SETOK_INSTANTIATE(T)                                         \
  template void scope_step(ScopeState<T>&, Kernel, Alpha, const T*); \
  template T mask_mass(const ScopeState<T>&);                        \
  template void commit(ScopeState<T>&, index_t);                     \
  template Priority<T> priority(const ScopeState<T>&);               \
  template index_t token_of(const ScopeState<T>&, T);
SETOK_INSTANTIATE(float)
SETOK_INSTANTIATE(double)

}  // namespace setok
