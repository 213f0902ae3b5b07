#include "gram.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <array>

namespace setok {
namespace {

using torch::stable::Tensor;

template <class T>
Tensor view(const T* data, index_t rows, index_t columns, index_t row_stride,
            index_t column_stride) {
  const std::array<int64_t, 2> sizes{rows, columns}, strides{row_stride, column_stride};
  const auto dtype =
      sizeof(T) == 8 ? torch::headeronly::ScalarType::Double : torch::headeronly::ScalarType::Float;
  return torch::stable::from_blob(const_cast<T*>(data), sizes, strides,
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype);
}

// ||a - b||^2 over fixed lanes: the same bits for the same numbers, whatever surrounds them.
template <class T>
SETOK_INLINE T lane_sum(const T* a, const T* b, index_t dim) {
  T sum[kLanes] = {};
  const index_t whole = dim / kLanes * kLanes;
  for (index_t j = 0; j < whole; j += kLanes) {
#pragma omp simd
    for (index_t lane = 0; lane < kLanes; ++lane) {
      const T apart = a[j + lane] - b[j + lane];
      sum[lane] += apart * apart;
    }
  }
  for (index_t j = whole; j < dim; ++j) {
    const T apart = a[j] - b[j];
    sum[j - whole] += apart * apart;
  }
  for (index_t width = kLanes / 2; width > 0; width /= 2)
    for (index_t lane = 0; lane < width; ++lane) sum[lane] += sum[lane + width];
  return sum[0];
}

#define SETOK_SUMS(T)                                                                      \
  SETOK_CLONES void distances_of(const T* x, index_t n, index_t dim, T* out, index_t ld) { \
    for (index_t i = 0; i < n; ++i)                                                        \
      for (index_t j = 0; j <= i; ++j)                                                     \
        out[i * ld + j] = out[j * ld + i] = lane_sum(x + i * dim, x + j * dim, dim);       \
  }                                                                                        \
  SETOK_CLONES T distance_of(const T* a, const T* b, index_t dim) { return lane_sum(a, b, dim); }
SETOK_SUMS(float)
SETOK_SUMS(double)
#undef SETOK_SUMS

}  // namespace

double squared_distance(const double* a, const double* b, index_t dim) {
  return distance_of(a, b, dim);
}
float squared_distance(const float* a, const float* b, index_t dim) {
  return distance_of(a, b, dim);
}

void small_distances(const float* x, index_t n, index_t dim, float* out, index_t ld) {
  distances_of(x, n, dim, out, ld);
}
void small_distances(const double* x, index_t n, index_t dim, double* out, index_t ld) {
  distances_of(x, n, dim, out, ld);
}

template <class T>
void product(const T* a, index_t rows, const T* b, index_t columns, index_t dim, T* out,
             index_t ld) {
  const Tensor left = view(a, rows, dim, dim, 1), right = view(b, dim, columns, 1, dim);
  const Tensor result = view(out, rows, columns, ld, 1);
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(result.get(), left.get(), right.get()));
}

index_t panel_height(index_t n) {
  constexpr index_t kMost = 96;
  const index_t panels = (n + kMost - 1) / kMost;
  return panels == 0 ? kLanes : padded((n + panels - 1) / panels);
}

template <class T>
void upper_gram(const T* x, index_t n, index_t dim, T* out, index_t ld) {
  const index_t height = panel_height(n), panels = (n + height - 1) / height;
  // A second task keeps a single product inside a parallel region, hence on one thread.
  parallel_tasks(panels < 2 ? 2 : panels, [&](index_t panel) {
    if (panel >= panels) return;
    const index_t top = panel * height, rows = n - top < height ? n - top : height;
    product(x + top * dim, rows, x + top * dim, n - top, dim, out + top * ld + top, ld);
  });
}

template void product(const float*, index_t, const float*, index_t, index_t, float*, index_t);
template void product(const double*, index_t, const double*, index_t, index_t, double*, index_t);
template void upper_gram(const float*, index_t, index_t, float*, index_t);
template void upper_gram(const double*, index_t, index_t, double*, index_t);

}  // namespace setok
