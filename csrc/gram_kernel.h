// Panels of tokens and their inner products, for one instruction set. gram.cpp includes this file
// once for each of them and defines SETOK_ISA (a namespace), SETOK_TARGET (an attribute),
// SETOK_BYTES of a vector and SETOK_ROWS of a block: vector types are lowered before functions are
// cloned, so SETOK_CLONES would not do here.

namespace SETOK_ISA {

template <class T>
struct Vector {
  using integer = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  typedef T type __attribute__((vector_size(SETOK_BYTES)));
  typedef integer index __attribute__((vector_size(SETOK_BYTES)));
  static constexpr index_t kWidth = SETOK_BYTES / sizeof(T);
};

// Which lanes of (a, b) make the new a and the new b where blocks of `half` lanes change places.
template <class T>
struct Exchange {
  typename Vector<T>::integer a[Vector<T>::kWidth], b[Vector<T>::kWidth];

  constexpr explicit Exchange(index_t half) : a{}, b{} {
    for (index_t lane = 0; lane < Vector<T>::kWidth; ++lane) {
      a[lane] = lane & half ? lane - half + Vector<T>::kWidth : lane;
      b[lane] = lane & half ? lane + Vector<T>::kWidth : lane + half;
    }
  }
};

// Transposes blocks of `half` lanes, then those within them.
template <class T, index_t half>
SETOK_TARGET __attribute__((always_inline)) inline void exchange(typename Vector<T>::type* rows) {
  if constexpr (half > 0) {
    static constexpr Exchange<T> kLanesOf(half);
    typename Vector<T>::index a, b;
    std::memcpy(&a, kLanesOf.a, sizeof(a));
    std::memcpy(&b, kLanesOf.b, sizeof(b));
#pragma GCC unroll 16
    for (index_t r = 0; r < Vector<T>::kWidth; ++r) {
      if (r & half) continue;
      const auto first = rows[r], second = rows[r + half];
      rows[r] = __builtin_shuffle(first, second, a);
      rows[r + half] = __builtin_shuffle(first, second, b);
    }
    exchange<T, half / 2>(rows);
  }
}

// to[c * to_ld + r] = from[r * from_ld + c] for as many rows and columns as a vector is wide.
template <class T>
SETOK_TARGET void transpose_block(const T* from, index_t from_ld, T* to, index_t to_ld) {
  using Lanes = typename Vector<T>::type;
  constexpr index_t kWidth = Vector<T>::kWidth;
#ifdef __clang__
  for (index_t c = 0; c < kWidth; ++c)
    for (index_t r = 0; r < kWidth; ++r) to[c * to_ld + r] = from[r * from_ld + c];
#else
  Lanes rows[kWidth];
  for (index_t r = 0; r < kWidth; ++r) std::memcpy(&rows[r], from + r * from_ld, sizeof(Lanes));
  exchange<T, kWidth / 2>(rows);
  for (index_t r = 0; r < kWidth; ++r) std::memcpy(to + r * to_ld, &rows[r], sizeof(Lanes));
#endif
}

template <class T>
SETOK_TARGET void transpose_tile(const T* tile, T* to, index_t ld) {
  constexpr index_t kWidth = Vector<T>::kWidth;
  for (index_t r = 0; r < kPanel; r += kWidth)
    for (index_t c = 0; c < kPanel; c += kWidth)
      transpose_block(tile + r * kPanel + c, kPanel, to + c * ld + r, ld);
}

template <class T>
SETOK_TARGET void pack_panel(const T* x, index_t ld, index_t count, index_t dim, T* packed) {
  constexpr index_t kWidth = Vector<T>::kWidth;
  const index_t rows = count / kWidth * kWidth, columns = dim / kWidth * kWidth;
  if (count < kPanel) std::fill_n(packed, kPanel * dim, T{0});
  for (index_t k = 0; k < columns; k += kWidth)
    for (index_t i = 0; i < rows; i += kWidth)
      transpose_block(x + i * ld + k, ld, packed + k * kPanel + i, kPanel);
  for (index_t i = 0; i < count; ++i)
    for (index_t k = i < rows ? columns : 0; k < dim; ++k) packed[k * kPanel + i] = x[i * ld + k];
}

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
SETOK_TARGET void multiply_panels(const T* a, const T* b, index_t dim, T* tile, index_t rows) {
  // Sums of so many products are added up one by one: rounding errors grow with the depth of a
  // block, not with dim. Deeper blocks are 3 % faster.
  constexpr index_t kDepth = 128;
  for (index_t k = 0; k == 0 || k < dim; k += kDepth) {
    const index_t depth = dim - k < kDepth ? dim - k : kDepth;
    for (index_t r = 0; r < rows; r += SETOK_ROWS)
      for (index_t c = 0; c < kPanel; c += 2 * Vector<T>::kWidth)
        multiply_block(a + k * kPanel + r, b + k * kPanel + c, depth, k > 0, tile + r * kPanel + c);
  }
}

template <class T>
constexpr PanelKernels<T> kKernels{pack_panel<T>, multiply_panels<T>, transpose_tile<T>};

}  // namespace SETOK_ISA

#undef SETOK_ISA
#undef SETOK_TARGET
#undef SETOK_BYTES
#undef SETOK_ROWS
