// The inner products of two panels, for one instruction set. gram.cpp includes this file once for
// each of them and defines SETOK_ISA (a namespace), SETOK_TARGET (an attribute), SETOK_BYTES of a
// vector and SETOK_ROWS of a block: vector types are lowered before functions are cloned, so
// SETOK_CLONES would not do here.

namespace SETOK_ISA {

template <class T>
struct Vector {
  typedef T type __attribute__((vector_size(SETOK_BYTES)));
  static constexpr index_t kWidth = SETOK_BYTES / sizeof(T);
};

// out (SETOK_ROWS, two vectors), rows kPanel apart, from `depth` features; added to where `more`.
template <class T>
SETOK_TARGET void multiply_block(const T* a, const T* b, index_t depth, bool more, T* out) {
  using Lanes = typename Vector<T>::type;
  constexpr index_t kWidth = Vector<T>::kWidth;
  const auto at = [](T* from) { return reinterpret_cast<Lanes*>(from); };
  Lanes sum[SETOK_ROWS][2];
  for (auto& row : sum) row[0] = row[1] = Lanes{};
  for (index_t k = 0; k < depth; ++k) {
    const Lanes low = *reinterpret_cast<const Lanes*>(b + k * kPanel);
    const Lanes high = *reinterpret_cast<const Lanes*>(b + k * kPanel + kWidth);
#pragma GCC unroll 8
    for (index_t r = 0; r < SETOK_ROWS; ++r) {
      const T value = a[k * kPanel + r];
      sum[r][0] += value * low;
      sum[r][1] += value * high;
    }
  }
  for (index_t r = 0; r < SETOK_ROWS; ++r) {
    Lanes *left = at(out + r * kPanel), *right = at(out + r * kPanel + kWidth);
    *left = more ? *left + sum[r][0] : sum[r][0];
    *right = more ? *right + sum[r][1] : sum[r][1];
  }
}

template <class T>
SETOK_TARGET void multiply_panels(const T* a, const T* b, index_t dim, T* tile) {
  // Sums of so many products are added up one by one: half of an L1 cache, and rounding errors
  // that grow with the depth of a block, not with dim.
  constexpr index_t kDepth = 384;
  for (index_t k = 0; k == 0 || k < dim; k += kDepth) {
    const index_t depth = dim - k < kDepth ? dim - k : kDepth;
    for (index_t r = 0; r < kPanel; r += SETOK_ROWS)
      for (index_t c = 0; c < kPanel; c += 2 * Vector<T>::kWidth)
        multiply_block(a + k * kPanel + r, b + k * kPanel + c, depth, k > 0, tile + r * kPanel + c);
  }
}

}  // namespace SETOK_ISA

#undef SETOK_ISA
#undef SETOK_TARGET
#undef SETOK_BYTES
#undef SETOK_ROWS
