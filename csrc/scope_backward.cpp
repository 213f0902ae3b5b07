#include "scope_backward.h"

#include <algorithm>
#include <cmath>

#include "similarity.h"

namespace setok {
namespace {

// What alpha depends on besides the token.
template <class T>
struct Curve {
  Kernel kernel;
  Alpha form;
  T sigma, far, bandwidth, beta, steep;
  T slope;  // -log2(e) / bandwidth
  T reach;  // turns gradients of phi, times -bandwidth, into twice those of the squared distance
};

// The tokens of a block side by side, zeros behind the last.
template <class T>
struct Block {
  alignas(64) T score[kScopeBlock], threshold[kScopeBlock];
  alignas(64) T mask[kScopeBlock], grad[kScopeBlock];
  alignas(64) T later[kScopeBlock];  // gradient of the scope that is left
  alignas(64) T pull[kScopeBlock];
  index_t width;
  double sums[4][kLanes];
};

template <class T>
struct AlphaAt {
  T away, phi, level, alpha, rest;  // phi falls with `away`; rest is 1 - alpha
};

template <class T, Kernel kernel, Alpha form>
SETOK_INLINE AlphaAt<T> alpha_at(const Curve<T>& curve, T d, T score, T threshold) {
  AlphaAt<T> at;
  at.away = kernel == Kernel::laplacian ? std::sqrt(d) : d;
  at.phi = similarity<T, kernel>(d, curve.bandwidth, curve.slope);
  if constexpr (form == Alpha::kernel) {
    T alpha = at.phi - curve.beta * score;
    alpha = alpha < T(0.01) ? T(0.01) : alpha;
    at.alpha = alpha > T(0.99) ? T(0.99) : alpha;
    at.level = 0;
    at.rest = 1 - at.alpha;
  } else {
    // Nothing is left to tell apart so far below, and products with it stay numbers.
    const T lowest = -2 * kLevelLimit<T>, level = (threshold - at.phi) * curve.steep;
    at.level = level < lowest ? lowest : level;
    const T odds = vexp2(at.level > kLevelLimit<T> ? kLevelLimit<T> : at.level);
    at.alpha = 1 / (1 + odds);
    at.rest = odds * at.alpha;
  }
  return at;
}

// One seed, whose row of distances becomes that of their gradients.
template <class T, Kernel kernel, Alpha form>
SETOK_INLINE void step(const Curve<T>& curve, Block<T>& block, T* row) {
  const T *score = block.score, *threshold = block.threshold;
  const T *mask = block.mask, *grad = block.grad;
  T *later = block.later, *pull = block.pull;
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
      pull[i] += g;
      T fall;
      if constexpr (kernel == Kernel::epanechnikov)
        fall = d <= curve.bandwidth ? g : T{0};
      else
        fall = g * at.phi;
      alone[lane] += static_cast<double>(g);
      by_score[lane] += static_cast<double>(g * score[i]);
      by_level[lane] += static_cast<double>(g * at.level);
      by_reach[lane] += static_cast<double>(fall * at.away);
      // The root has no slope at 0.
      if constexpr (kernel == Kernel::laplacian) fall = d > 0 ? fall / (2 * at.away) : T{0};
      row[i] = scaled > far ? T{0} : reach * fall;
    }
  }
}

template <class T, Alpha form>
SETOK_INLINE void step_of_kernel(const Curve<T>& curve, Block<T>& block, T* row) {
  if (curve.kernel == Kernel::gaussian) return step<T, Kernel::gaussian, form>(curve, block, row);
  if (curve.kernel == Kernel::laplacian) return step<T, Kernel::laplacian, form>(curve, block, row);
  step<T, Kernel::epanechnikov, form>(curve, block, row);
}

#define SETOK_SCOPE_BACKWARD(T)                                                                    \
  SETOK_CLONES void step_of(const Curve<T>& curve, Block<T>& block, T* row) {                      \
    if (curve.form == Alpha::sigmoid) return step_of_kernel<T, Alpha::sigmoid>(curve, block, row); \
    step_of_kernel<T, Alpha::kernel>(curve, block, row);                                           \
  }
SETOK_SCOPE_BACKWARD(float)
SETOK_SCOPE_BACKWARD(double)
#undef SETOK_SCOPE_BACKWARD

template <class T>
T steepness(const Options& options) {
  // As in the forward pass.
  return std::min(T(1.4426950408889634) / static_cast<T>(options.temperature), T(0x1p+100));
}

template <class T>
Curve<T> curve_of(const ScopeBackward<T>& image) {
  const Options& options = image.options;
  const T bandwidth = static_cast<T>(options.bandwidth), most = std::numeric_limits<T>::max();
  const double reach = -2 * static_cast<double>(image.slope) / static_cast<double>(bandwidth) *
                       inverse_temperature<T>(options);
  return {options.kernel,
          options.alpha,
          image.sigma,
          std::sqrt(most),
          bandwidth,
          static_cast<T>(options.beta),
          steepness<T>(options),
          -T(1.4426950408889634) / bandwidth,
          static_cast<T>(std::max(reach, -static_cast<double>(most)))};
}

}  // namespace

template <class T>
double inverse_temperature(const Options& options) {
  if (options.alpha == Alpha::kernel) return 1;
  return static_cast<double>(steepness<T>(options)) / 1.4426950408889634;
}

template <class T>
ScopeSums scope_backward(const ScopeBackward<T>& image, index_t begin, index_t end) {
  const Curve<T> curve = curve_of(image);
  Block<T> block{};
  block.width = padded(end - begin);
  const auto load = [&](const T* from, T* to) {
    if (image.position == nullptr) {
      std::copy(from + begin, from + end, to);
      return;
    }
    for (index_t i = begin; i < end; ++i) to[i - begin] = from[image.position[i]];
  };
  load(image.score, block.score);
  const T offset = static_cast<T>(image.options.offset);
  for (index_t i = 0; i < block.width; ++i)
    block.threshold[i] = offset + curve.beta * block.score[i];
  load(image.grad_masks + image.count * image.mask_stride, block.later);
  for (index_t c = image.live - 1; c >= 0; --c) {
    load(image.masks + image.row[c] * image.mask_stride, block.mask);
    load(image.grad_masks + image.row[c] * image.mask_stride, block.grad);
    step_of(curve, block, image.distance + c * image.ld + begin);
  }
  std::copy_n(block.pull, block.width, image.pull + begin);
  double total[4] = {};
  for (index_t sum = 0; sum < 4; ++sum)
    for (index_t lane = 0; lane < kLanes; ++lane) total[sum] += block.sums[sum][lane];
  return {total[0], total[1], total[2], total[3]};
}

#define SETOK_INSTANTIATE(T)                              \
  template double inverse_temperature<T>(const Options&); \
  template ScopeSums scope_backward(const ScopeBackward<T>&, index_t, index_t);
SETOK_INSTANTIATE(float)
SETOK_INSTANTIATE(double)

}  // namespace setok
