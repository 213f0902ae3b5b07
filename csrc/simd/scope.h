// Scope loop with its alpha masks (SeTok, Algorithm 1).

#pragma once

#include "math.h"
#include "similarity.h"
#include "types.h"

namespace setok::SETOK_ISA {
namespace {

// Adds the lanes in a fixed order.
template <class T>
SETOK_INLINE T total(const T* lanes) {
  T sum[kLanes];
  for (index_t lane = 0; lane < kLanes; ++lane) sum[lane] = lanes[lane];
  for (index_t half = kLanes / 2; half > 0; half /= 2)
    for (index_t lane = 0; lane < half; ++lane) sum[lane] += sum[lane + half];
  return sum[0];
}

template <class T, Kernel kernel, Alpha form>
SETOK_INLINE T step(const ScopeState<T>& state, const T* row) {
  const T sigma = state.sigma, far = state.far, bandwidth = state.bandwidth, beta = state.beta;
  const T slope = -state.log2e / bandwidth, steep = state.steep;
  const T* score = state.score;
  const T* threshold = state.threshold;
  const T* scope = state.scope;
  T* mask = state.mask;
  T* next = state.next;
  const T limit = kLevelLimit<T>;
  const index_t width = state.width;
  T mass[kLanes] = {};
  for (index_t block = 0; block < width; block += kLanes) {
#pragma omp simd
    for (index_t lane = 0; lane < kLanes; ++lane) {
      const index_t i = block + lane;
      T d = sigma * row[i];
      d = d > far ? far : d;
      const T phi = similarity<T, kernel>(d, bandwidth, slope);
      T alpha;
      if constexpr (form == Alpha::kernel) {
        alpha = phi - beta * score[i];
        alpha = alpha < T(0.01) ? T(0.01) : alpha;
        alpha = alpha > T(0.99) ? T(0.99) : alpha;
      } else {
        const T level = threshold[i] - steep * phi;
        alpha = 1 / (1 + vexp2(level > limit ? limit : level));
      }
      const T taken = scope[i] * alpha;
      mask[i] = taken;
      next[i] = scope[i] * (1 - alpha);
      mass[lane] += taken;
    }
  }
  return total(mass);
}

template <class T, Alpha form>
SETOK_INLINE T step_of_kernel(const ScopeState<T>& state, Kernel kernel, const T* row) {
  if (kernel == Kernel::gaussian) return step<T, Kernel::gaussian, form>(state, row);
  if (kernel == Kernel::laplacian) return step<T, Kernel::laplacian, form>(state, row);
  return step<T, Kernel::epanechnikov, form>(state, row);
}

template <class T>
T scope_step(const ScopeState<T>& state, Kernel kernel, Alpha alpha, const T* row) {
  if (alpha == Alpha::sigmoid) return step_of_kernel<T, Alpha::sigmoid>(state, kernel, row);
  return step_of_kernel<T, Alpha::kernel>(state, kernel, row);
}

template <class T>
void update_labels(const ScopeState<T>& state, T row) {
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
Priority<T> largest_priority(const ScopeState<T>& state) {
  const T* scope = state.scope;
  const T* score = state.score;
  const T* eligible = state.eligible;
  const T* number = state.number;
  T sum[kLanes] = {}, maxima[kLanes], token[kLanes];
  for (index_t lane = 0; lane < kLanes; ++lane) maxima[lane] = token[lane] = -1;
  for (index_t block = 0; block < state.width; block += kLanes) {
#pragma omp simd
    for (index_t lane = 0; lane < kLanes; ++lane) {
      const index_t i = block + lane;
      const T value = eligible[i] > 0 ? scope[i] * score[i] : T(-1);
      const bool larger = value > maxima[lane];
      token[lane] = larger ? number[i] : token[lane];
      maxima[lane] = larger ? value : maxima[lane];
      sum[lane] += scope[i];
    }
  }
  // Each lane has its first token; the lowest of them is the first of all.
  T largest = -1, first = -1;
  for (index_t lane = 0; lane < kLanes; ++lane) {
    const bool before =
        (maxima[lane] > largest) | ((maxima[lane] == largest) & (token[lane] < first));
    first = before ? token[lane] : first;
    largest = before ? maxima[lane] : largest;
  }
  return {static_cast<index_t>(first), total(sum)};
}

}  // namespace
}  // namespace setok::SETOK_ISA
