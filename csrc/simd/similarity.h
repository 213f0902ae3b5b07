// Common constants and similarity of the scope loop and its gradient.

#pragma once

#include "math.h"
#include "types.h"

namespace setok::SETOK_ISA {
namespace {

// 0.9 log2(max), as in the reference, keeps the exponential of the sigmoid in range.
template <class T>
constexpr T kLevelLimit = sizeof(T) == 8 ? T(921.6) : T(115.2);

// `slope` is -log2(e) / bandwidth, for one product instead of two and a division.
template <class T, Kernel kernel>
SETOK_INLINE T similarity(T distance, T bandwidth, T slope) {
  if constexpr (kernel == Kernel::gaussian) return vexp2(distance * slope);
  if constexpr (kernel == Kernel::laplacian) return vexp2(root(distance) * slope);
  const T phi = 1 - distance / bandwidth;
  return phi > 0 ? phi : 0;
}

}  // namespace
}  // namespace setok::SETOK_ISA
