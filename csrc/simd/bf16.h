// Inner products of bfloat16 features, two of them in each lane.

#pragma once

#ifdef __AVX512BF16__
#include <immintrin.h>

#include "gram.h"
#include "types.h"

namespace setok::SETOK_ISA {
namespace {

// Features of a pair k, k + 1 as the halves of one number.
SETOK_INLINE uint32_t pair_of(const float* x, index_t k, index_t dim) {
  const uint32_t high = k + 1 < dim ? bits_as<uint32_t>(x[k + 1]) : 0;
  return bits_as<uint32_t>(x[k]) >> 16 | (high & 0xffff0000u);
}

void pack_bf16(const float* x, index_t ld, index_t count, index_t dim, float* packed) {
  using Lanes = Vector<float>::type;
  constexpr index_t kWidth = Vector<float>::kWidth;
  const index_t rows = count / kWidth * kWidth, columns = dim / (2 * kWidth) * (2 * kWidth);
  const index_t pairs = (dim + 1) / 2;
  for (index_t i = 0; count < kPanel && i < kPanel * pairs; ++i) packed[i] = 0;
  for (index_t k = 0; k < columns; k += 2 * kWidth) {
    for (index_t i = 0; i < rows; i += kWidth) {
      Lanes pair[kWidth];
      for (index_t r = 0; r < kWidth; ++r) {
        const float* from = x + (i + r) * ld + k;
        const __m512bh both =
            _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + kWidth), _mm512_loadu_ps(from));
        std::memcpy(&pair[r], &both, sizeof(Lanes));
      }
      exchange<float, kWidth / 2>(pair);
      for (index_t r = 0; r < kWidth; ++r)
        std::memcpy(packed + (k / 2 + r) * kPanel + i, &pair[r], sizeof(Lanes));
    }
  }
  for (index_t i = 0; i < count; ++i)
    for (index_t k = i < rows ? columns : 0; k < dim; k += 2)
      packed[k / 2 * kPanel + i] = bits_as<float>(pair_of(x + i * ld, k, dim));
}

// out (SETOK_ROWS, kPanel) from `depth` pairs of features; added to where `more`.
SETOK_INLINE void multiply_pairs(const float* a, const float* b, index_t depth, bool more,
                                 float* out) {
  __m512 sum[SETOK_ROWS][2];
  for (auto& row : sum) row[0] = row[1] = _mm512_setzero_ps();
  for (index_t k = 0; k < depth; ++k) {
    const __m512i low = _mm512_load_si512(b + k * kPanel);
    const __m512i high = _mm512_load_si512(b + k * kPanel + kPanel / 2);
#pragma GCC unroll 8
    for (index_t r = 0; r < SETOK_ROWS; ++r) {
      const __m512i pair = _mm512_set1_epi32(bits_as<int32_t>(a[k * kPanel + r]));
      sum[r][0] = _mm512_dpbf16_ps(sum[r][0], bits_as<__m512bh>(pair), bits_as<__m512bh>(low));
      sum[r][1] = _mm512_dpbf16_ps(sum[r][1], bits_as<__m512bh>(pair), bits_as<__m512bh>(high));
    }
  }
  for (index_t r = 0; r < SETOK_ROWS; ++r) {
    for (index_t c = 0; c < 2; ++c) {
      float* to = out + r * kPanel + c * (kPanel / 2);
      _mm512_store_ps(to, more ? _mm512_add_ps(_mm512_load_ps(to), sum[r][c]) : sum[r][c]);
    }
  }
}

void multiply_bf16(const float* a, const float* b, index_t dim, float* tile, index_t rows) {
  // Partial sums, as in multiply_panels.
  constexpr index_t kDepth = 64;
  const index_t pairs = (dim + 1) / 2;
  for (index_t k = 0; k == 0 || k < pairs; k += kDepth) {
    const index_t depth = pairs - k < kDepth ? pairs - k : kDepth;
    for (index_t r = 0; r < rows; r += SETOK_ROWS)
      multiply_pairs(a + k * kPanel + r, b + k * kPanel, depth, k > 0, tile + r * kPanel);
  }
}

}  // namespace
}  // namespace setok::SETOK_ISA
#endif
