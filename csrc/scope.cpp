#include "scope.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "simd/kernels.h"

namespace setok {

template <class T>
void set_options(ScopeState<T>& state, const Options& options) {
  state.log2e = T(1.4426950408889634);
  state.far = std::sqrt(std::numeric_limits<T>::max());
  state.bandwidth = static_cast<T>(options.bandwidth);
  state.beta = static_cast<T>(options.beta);
  // Steeper sigmoids give the same step, and with this bound products stay finite.
  state.steep = std::min(state.log2e / static_cast<T>(options.temperature), T(0x1p+100));
  const T offset = static_cast<T>(options.offset);
  for (index_t i = 0; i < state.width; ++i)
    state.threshold[i] = (offset + state.beta * state.score[i]) * state.steep;
}

template <class T>
void commit(ScopeState<T>& state, index_t row) {
  kernels<T>().update_labels(state, static_cast<T>(row));
  std::swap(state.scope, state.next);
}

#define SETOK_INSTANTIATE(T)                                 \
  template void set_options(ScopeState<T>&, const Options&); \
  template void commit(ScopeState<T>&, index_t);
SETOK_INSTANTIATE(float)
SETOK_INSTANTIATE(double)

}  // namespace setok
