#include "scope_backward.h"

#include <algorithm>
#include <cmath>

#include "simd/kernels.h"

namespace setok {
namespace {

template <class T>
T steepness(const Options& options) {
  // As in the forward pass.
  return std::min(T(1.4426950408889634) / static_cast<T>(options.temperature), T(0x1p+100));
}

template <class T>
Curve<T> curve_of(const ScopeBackward<T>& image) {
  const Options& options = image.options;
  const T bandwidth = static_cast<T>(options.bandwidth), max = std::numeric_limits<T>::max();
  const double reach = -2 * static_cast<double>(image.slope) / static_cast<double>(bandwidth) *
                       inverse_temperature<T>(options);
  return {options.kernel,
          options.alpha,
          image.sigma,
          std::sqrt(max),
          bandwidth,
          static_cast<T>(options.beta),
          steepness<T>(options),
          -T(1.4426950408889634) / bandwidth,
          static_cast<T>(std::max(reach, -static_cast<double>(max)))};
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
  ScopeBlock<T> block{};
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
    kernels<T>().scope_step_back(curve, block, image.distance + c * image.ld + begin);
  }
  std::copy_n(block.level_grad, block.width, image.level_grad + begin);
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
