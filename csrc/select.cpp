#include "select.h"

#if defined(SETOK_CLONED) || defined(__AVX512F__)
#define SETOK_COMPRESS 1
#include <immintrin.h>
#endif

namespace setok {
namespace {

template <class T>
index_t select_plain(const T* row, index_t width, T bound, int32_t* found) {
  index_t count = 0;
  for (index_t j = 0; j < width; ++j) {
    found[count] = static_cast<int32_t>(j);
    count += row[j] <= bound;
  }
  return count;
}

#ifdef SETOK_COMPRESS
// No compiler turns the loop above into the instruction that AVX-512 has for it.
__attribute__((target("avx512f,popcnt"))) index_t select_avx512(const float* row, index_t width,
                                                                float bound, int32_t* found) {
  const __m512 most = _mm512_set1_ps(bound);
  __m512i number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  index_t count = 0;
  for (index_t j = 0; j < width; j += 16) {
    const __mmask16 mask = _mm512_cmp_ps_mask(_mm512_loadu_ps(row + j), most, _CMP_LE_OQ);
    // Compressing in the register and storing all is cheaper than a masked store.
    _mm512_storeu_si512(found + count, _mm512_maskz_compress_epi32(mask, number));
    count += __builtin_popcount(mask);
    number = _mm512_add_epi32(number, _mm512_set1_epi32(16));
  }
  return count;
}

__attribute__((target("avx512f,popcnt"))) index_t select_avx512(const double* row, index_t width,
                                                                double bound, int32_t* found) {
  const __m512d most = _mm512_set1_pd(bound);
  __m512i number = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  index_t count = 0;
  for (index_t j = 0; j < width; j += 16) {
    const unsigned low = _mm512_cmp_pd_mask(_mm512_loadu_pd(row + j), most, _CMP_LE_OQ);
    const unsigned high = _mm512_cmp_pd_mask(_mm512_loadu_pd(row + j + 8), most, _CMP_LE_OQ);
    const auto mask = static_cast<__mmask16>(low | high << 8);
    _mm512_storeu_si512(found + count, _mm512_maskz_compress_epi32(mask, number));
    count += __builtin_popcount(mask);
    number = _mm512_add_epi32(number, _mm512_set1_epi32(16));
  }
  return count;
}

bool has_avx512() {
  static const bool known = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("popcnt");
  return known;
}
#endif

template <class T>
index_t select(const T* row, index_t width, T bound, int32_t* found) {
#ifdef SETOK_COMPRESS
  if (has_avx512()) return select_avx512(row, width, bound, found);
#endif
  return select_plain(row, width, bound, found);
}

}  // namespace

index_t select_within(const float* row, index_t width, float bound, int32_t* found) {
  return select(row, width, bound, found);
}
index_t select_within(const double* row, index_t width, double bound, int32_t* found) {
  return select(row, width, bound, found);
}

}  // namespace setok
