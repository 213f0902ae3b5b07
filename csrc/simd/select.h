// Positions of the values of a row up to a bound, without a branch per value.

#pragma once

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "types.h"

namespace setok::SETOK_ISA {
namespace {

#ifdef __AVX512F__
// Compilers do not vectorise the loop below to AVX-512's compress instruction.
template <class T>
index_t select_within(const T* row, index_t width, T bound, int32_t* found);

template <>
index_t select_within(const float* row, index_t width, float bound, int32_t* found) {
  const __m512 limit = _mm512_set1_ps(bound);
  __m512i number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  index_t count = 0;
  for (index_t j = 0; j < width; j += 16) {
    const __mmask16 mask = _mm512_cmp_ps_mask(_mm512_loadu_ps(row + j), limit, _CMP_LE_OQ);
    // Compressing in a register and storing all lanes is cheaper than a masked store.
    _mm512_storeu_si512(found + count, _mm512_maskz_compress_epi32(mask, number));
    count += __builtin_popcount(mask);
    number = _mm512_add_epi32(number, _mm512_set1_epi32(16));
  }
  return count;
}

template <>
index_t select_within(const double* row, index_t width, double bound, int32_t* found) {
  const __m512d limit = _mm512_set1_pd(bound);
  __m512i number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  index_t count = 0;
  for (index_t j = 0; j < width; j += 16) {
    const unsigned low = _mm512_cmp_pd_mask(_mm512_loadu_pd(row + j), limit, _CMP_LE_OQ);
    const unsigned high = _mm512_cmp_pd_mask(_mm512_loadu_pd(row + j + 8), limit, _CMP_LE_OQ);
    const auto mask = static_cast<__mmask16>(low | high << 8);
    _mm512_storeu_si512(found + count, _mm512_maskz_compress_epi32(mask, number));
    count += __builtin_popcount(mask);
    number = _mm512_add_epi32(number, _mm512_set1_epi32(16));
  }
  return count;
}
#else
template <class T>
index_t select_within(const T* row, index_t width, T bound, int32_t* found) {
  index_t count = 0;
  for (index_t j = 0; j < width; ++j) {
    found[count] = static_cast<int32_t>(j);
    count += row[j] <= bound;
  }
  return count;
}
#endif

}  // namespace
}  // namespace setok::SETOK_ISA
