// Gradients of the scope loop (SeTok, Algorithm 1).

#pragma once

#include "math.h"
#include "similarity.h"
#include "types.h"

namespace setok::SETOK_ISA {
namespace {

template <class T>
struct AlphaAt {
  T away, phi, level, alpha, rest;  // phi falls with `away`; rest is 1 - alpha
};

template <class T, Kernel kernel, Alpha form>
SETOK_INLINE AlphaAt<T> alpha_at(const Curve<T>& curve, T d, T score, T threshold) {
  AlphaAt<T> at;
  at.away = kernel == Kernel::laplacian ? root(d) : d;
  at.phi = similarity<T, kernel>(d, curve.bandwidth, curve.slope);
  if constexpr (form == Alpha::kernel) {
    T alpha = at.phi - curve.beta * score;
    alpha = alpha < T(0.01) ? T(0.01) : alpha;
    at.alpha = alpha > T(0.99) ? T(0.99) : alpha;
    at.level = 0;
    at.rest = 1 - at.alpha;
  } else {
    // Smaller values make no difference, and with this bound products stay finite.
    const T lowest = -2 * kLevelLimit<T>, level = (threshold - at.phi) * curve.steep;
    at.level = level < lowest ? lowest : level;
    const T odds = vexp2(at.level > kLevelLimit<T> ? kLevelLimit<T> : at.level);
    at.alpha = 1 / (1 + odds);
    at.rest = odds * at.alpha;
  }
  return at;
}

// Runs one seed backwards; its distance row becomes the row of their gradients.
template <class T, Kernel kernel, Alpha form>
SETOK_INLINE void step_back(const Curve<T>& curve, ScopeBlock<T>& block, T* row) {
  const T *score = block.score, *threshold = block.threshold;
  const T *mask = block.mask, *grad = block.grad;
  T *later = block.later, *level_grad = block.level_grad;
  double *alone = block.sums[0], *by_score = block.sums[1];
  double *by_level = block.sums[2], *by_reach = block.sums[3];
  const T sigma = curve.sigma, far = curve.far, reach = curve.reach;
  for (index_t start = 0; start < block.width; start += kLanes) {
#pragma omp simd
    for (index_t lane = 0; lane < kLanes; ++lane) {
      const index_t i = start + lane;
      const T scaled = sigma * row[i], d = scaled > far ? far : scaled;
      const AlphaAt<T> at = alpha_at<T, kernel, form>(curve, d, score[i], threshold[i]);
      const T apart = grad[i] - later[i];
      T g;
      if constexpr (form == Alpha::kernel)
        g = mask[i] / at.alpha * apart;
      else
        g = at.level > kLevelLimit<T> ? T{0} : mask[i] * at.rest * apart;
      later[i] = at.alpha * grad[i] + at.rest * later[i];
      level_grad[i] += g;
      T fall;
      if constexpr (kernel == Kernel::epanechnikov)
        fall = d <= curve.bandwidth ? g : T{0};
      else
        fall = g * at.phi;
      alone[lane] += static_cast<double>(g);
      by_score[lane] += static_cast<double>(g * score[i]);
      by_level[lane] += static_cast<double>(g * at.level);
      by_reach[lane] += static_cast<double>(fall * at.away);
      // The subgradient of the root at 0 is 0.
      if constexpr (kernel == Kernel::laplacian) fall = d > 0 ? fall / (2 * at.away) : T{0};
      row[i] = scaled > far ? T{0} : reach * fall;
    }
  }
}

template <class T, Alpha form>
SETOK_INLINE void step_back_of_kernel(const Curve<T>& curve, ScopeBlock<T>& block, T* row) {
  if (curve.kernel == Kernel::gaussian)
    return step_back<T, Kernel::gaussian, form>(curve, block, row);
  if (curve.kernel == Kernel::laplacian)
    return step_back<T, Kernel::laplacian, form>(curve, block, row);
  step_back<T, Kernel::epanechnikov, form>(curve, block, row);
}

template <class T>
void scope_step_back(const Curve<T>& curve, ScopeBlock<T>& block, T* row) {
  if (curve.form == Alpha::sigmoid)
    return step_back_of_kernel<T, Alpha::sigmoid>(curve, block, row);
  step_back_of_kernel<T, Alpha::kernel>(curve, block, row);
}

}  // namespace
}  // namespace setok::SETOK_ISA
