#include "features.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "simd/kernels.h"

namespace setok {
namespace {

template <class T>
struct Statistics {
  T largest;        // maximum magnitude; non-finite if a token is
  double variance;  // around the mean, times the squared number of tokens
  bool* finite;     // (n,)
};

// Blocks of tokens depend on n alone, and their sums are added in order. Float64 sums of small
// integers are exact, so their scale does not depend on the order.
template <class T>
Statistics<T> statistics(const T* x, index_t n, index_t dim, Scratch& scratch) {
  using U = typename Bits<T>::type;
  const index_t block = std::max<index_t>(32, (n + 63) / 64), blocks = (n + block - 1) / block;
  const index_t stride = padded(dim) + 2;
  double* totals = scratch.get<double>(Scratch::totals, blocks * stride);
  bool* finite = scratch.get<bool>(Scratch::finite, n);
  parallel_blocks(n, block, [&](index_t begin, index_t end) {
    double* total = totals + begin / block * stride;
    std::fill_n(total, stride, 0.0);
    U largest = 0;
    double squares = 0;
    for (index_t i = begin; i < end; ++i) {
      const RowStatistics<T> row = kernels<T>().row_statistics(x + i * dim, x, total, dim);
      largest = std::max(largest, row.largest);
      squares += row.squares;
      finite[i] = row.largest < Bits<T>::kInfinity;
    }
    total[stride - 2] = squares;
    total[stride - 1] = static_cast<double>(bits_as<T>(largest));
  });
  Statistics<T> result{0, 0, finite};
  U largest = 0;
  double squares = 0, mean = 0;
  for (index_t b = 0; b < blocks; ++b) {
    squares += totals[b * stride + stride - 2];
    largest = std::max(largest, bits_as<U>(static_cast<T>(totals[b * stride + stride - 1])));
  }
  for (index_t b = 1; b < blocks; ++b)
    for (index_t j = 0; j < dim; ++j) totals[j] += totals[b * stride + j];
  for (index_t j = 0; j < dim; ++j) mean += totals[j] * totals[j];
  result.largest = bits_as<T>(largest);
  result.variance = static_cast<double>(n) * squares - mean;
  return result;
}

// Scales by 2**-exponent in two exact factors, both in the range of T.
template <class T>
void scale_range(const T* from, T* to, index_t count, int exponent) {
  const int half = exponent / 2;
  const T a = std::ldexp(T{1}, -half), b = std::ldexp(T{1}, half - exponent);
  parallel_blocks(count, 1 << 16, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) to[i] = from[i] * a * b;
  });
}

// Copies the tokens at `position` and converts them.
template <class T>
void gather_rows(const ImageInput& image, const index_t* position, index_t n, T* to) {
  parallel_blocks(n, 64, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i)
      load_row(image, position == nullptr ? i : position[i], to + i * image.dim);
  });
}

// sigma * 2**-exponent, which may be in range even if sigma is not.
template <class T>
T slope_of(const Options& options, T sigma, int exponent) {
  const bool variance = options.scale == Scale::variance;
  const double slope = variance ? std::ldexp(static_cast<double>(sigma), -exponent)
                                : std::ldexp(options.factor, exponent);
  return static_cast<T>(std::min(slope, static_cast<double>(std::numeric_limits<T>::max())));
}

template <class T>
T scale_of(const Options& options, double variance, index_t n, int exponent) {
  const T max = std::numeric_limits<T>::max();
  if (options.scale == Scale::variance) {
    if (!(variance > 0)) return 0;
    const double count = static_cast<double>(n), sigma = 0.5 / (variance / (count * count));
    return static_cast<T>(std::min(sigma, static_cast<double>(max)));
  }
  const T half = std::min<T>(std::ldexp(T{1}, exponent), max);
  return std::min<T>(static_cast<T>(options.factor) * half * half, max);
}

}  // namespace

template <class T>
void load_row(const ImageInput& image, index_t row, T* to) {
  const index_t dim = image.dim;
  const size_t width = bytes_of(image.dtype);
  const auto* from = static_cast<const char*>(image.x) + row * dim * width;
  if constexpr (sizeof(T) == 4) {
    if (width == 2)
      return kernels<T>().widen(reinterpret_cast<const uint16_t*>(from), image.dtype == Dtype::f16,
                                to, dim);
  }
  std::memcpy(to, from, dim * width);
}

template <class T>
Features<T> load_features(const ImageInput& image, const Options& options, Scratch& scratch) {
  const index_t dim = image.dim;
  const bool native = image.dtype == (sizeof(T) == 8 ? Dtype::f64 : Dtype::f32);
  auto* position = scratch.get<index_t>(Scratch::position, image.tokens);
  index_t n = 0;
  for (index_t i = 0; i < image.tokens; ++i)
    if (image.valid == nullptr || image.valid[i]) position[n++] = i;
  Features<T> out{static_cast<const T*>(image.x), n, dim, nullptr, 0, 0, 0, false};
  out.bf16 = image.dtype == Dtype::bf16 && kernels<T>().multiply_bf16 != nullptr;
  if (n < image.tokens) out.position = position;
  if (n == 0) return out;

  T* own = nullptr;
  if (n < image.tokens || !native) {
    out.x = own = scratch.get<T>(Scratch::x, n * dim);
    gather_rows(image, n < image.tokens ? position : nullptr, n, own);
  }
  Statistics<T> found = statistics(out.x, n, dim, scratch);
  if (!std::isfinite(found.largest)) {
    index_t kept = 0;
    for (index_t i = 0; i < n; ++i)
      if (found.finite[i]) position[kept++] = position[i];
    n = out.n = kept;
    out.position = position;
    if (n == 0) return out;
    out.x = own = scratch.get<T>(Scratch::x, n * dim);
    gather_rows(image, position, n, own);
    found = statistics(out.x, n, dim, scratch);
  }

  // Scaling by a power of two only changes a result if a square leaves the range, which is
  // impossible for these magnitudes.
  int exponent = 0;
  const T low = sizeof(T) == 8 ? T{0x1p-100} : T{0x1p-4}, high = T{0x1p+20};
  if (found.largest != 0 && !(found.largest >= low && found.largest <= high)) {
    std::frexp(found.largest, &exponent);
    const T* from = out.x;
    if (own == nullptr) out.x = own = scratch.get<T>(Scratch::x, n * dim);
    scale_range(from, own, n * dim, exponent);
    found = statistics(out.x, n, dim, scratch);
  }
  out.exponent = exponent;
  out.sigma = scale_of<T>(options, found.variance, n, exponent);
  out.slope = slope_of<T>(options, out.sigma, exponent);
  return out;
}

template void load_row(const ImageInput&, index_t, float*);
template void load_row(const ImageInput&, index_t, double*);
template Features<float> load_features(const ImageInput&, const Options&, Scratch&);
template Features<double> load_features(const ImageInput&, const Options&, Scratch&);

}  // namespace setok
