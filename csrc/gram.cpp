#include "gram.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <type_traits>

#include "build_info.h"

namespace setok {
namespace {

template <class T>
struct PanelKernels {
  void (*pack)(const T* x, index_t ld, index_t count, index_t dim, T* packed);
  void (*multiply)(const T* a, const T* b, index_t dim, T* tile, index_t rows);
  void (*transpose)(const T* tile, T* to, index_t ld);
};

#ifdef SETOK_CLONED
#define SETOK_ISA v4
#define SETOK_TARGET __attribute__((target("arch=x86-64-v4")))
#define SETOK_BYTES 64
#define SETOK_ROWS 8
#include "gram_kernel.h"
#define SETOK_ISA v3
#define SETOK_TARGET __attribute__((target("arch=x86-64-v3")))
#define SETOK_BYTES 32
#define SETOK_ROWS 4
#include "gram_kernel.h"
#endif
// What the whole file may use.
#define SETOK_ISA baseline
#define SETOK_TARGET
#if defined(__AVX512F__)
#define SETOK_BYTES 64
#define SETOK_ROWS 8
#else
#if defined(__AVX2__)
#define SETOK_BYTES 32
#else
#define SETOK_BYTES 16
#endif
#define SETOK_ROWS 4
#endif
#include "gram_kernel.h"

template <class T>
const PanelKernels<T>& kernels() {
#ifdef SETOK_CLONED
  static const std::string isa = cpu_isa();
  static const PanelKernels<T>& best = isa == "avx512" ? v4::kKernels<T>
                                       : isa == "avx2" ? v3::kKernels<T>
                                                       : baseline::kKernels<T>;
  return best;
#else
  return baseline::kKernels<T>;
#endif
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

void small_distances(const float* x, index_t n, index_t dim, float* out, index_t ld) {
  distances_of(x, n, dim, out, ld);
}
void small_distances(const double* x, index_t n, index_t dim, double* out, index_t ld) {
  distances_of(x, n, dim, out, ld);
}

float squared_distance(const float* a, const float* b, index_t dim) {
  return distance_of(a, b, dim);
}
double squared_distance(const double* a, const double* b, index_t dim) {
  return distance_of(a, b, dim);
}

template <class T>
void pack_panel(const T* x, index_t ld, index_t count, index_t dim, T* packed) {
  kernels<T>().pack(x, ld, count, dim, packed);
}

template <class T>
void multiply_panels(const T* a, const T* b, index_t dim, T* tile, index_t rows) {
  kernels<T>().multiply(a, b, dim, tile, rows);
}

template <class T>
void transpose_tile(const T* tile, T* to, index_t ld) {
  kernels<T>().transpose(tile, to, ld);
}

#define SETOK_INSTANTIATE(T)                                               \
  template void pack_panel(const T*, index_t, index_t, index_t, T*);       \
  template void multiply_panels(const T*, const T*, index_t, T*, index_t); \
  template void transpose_tile(const T*, T*, index_t);
SETOK_INSTANTIATE(float)
SETOK_INSTANTIATE(double)

}  // namespace setok
