// Packing with 256-bit compares and moves of sign bits. The AVX files include it inside their anonymous
// namespaces; wider registers gain nothing, as the inputs come from memory.

#include "binary_pack.h"

bool pack_signs(const float* x, std::size_t n, std::uint8_t* bits) {
  __m256 unordered = _mm256_setzero_ps();
  std::size_t i = 0;
  for (; i + 32 <= n; i += 32) {
    std::uint32_t word = 0;
    for (std::size_t j = 0; j < 4; ++j) {
      const __m256 v = _mm256_loadu_ps(x + i + 8 * j);
      unordered = _mm256_or_ps(unordered, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
      const int positive = _mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_GT_OQ));
      word |= static_cast<std::uint32_t>(positive) << (8 * j);
    }
    std::memcpy(bits + i / 8, &word, sizeof(word));
  }
  const bool numbers = _mm256_movemask_ps(unordered) == 0;
  return pack_few_signs(x + i, n - i, bits + i / 8) && numbers;
}

bool pack_planes(const std::int8_t* codes, std::size_t n, std::size_t planes, std::uint8_t* bits) {
  const std::size_t plane_bytes = (n + 7) / 8;
  __m256i magnitudes = _mm256_setzero_si256();  // bits in which a code differs from its sign
  std::size_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + i));
    const __m256i sign = _mm256_cmpgt_epi8(_mm256_setzero_si256(), v);
    magnitudes = _mm256_or_si256(magnitudes, _mm256_xor_si256(v, sign));
    for (std::size_t j = 0; j < planes; ++j) {
      // to the top of each byte, past which 16-bit shifts carry nothing that is looked at
      const __m256i top = _mm256_sll_epi16(v, _mm_cvtsi32_si128(static_cast<int>(7 - j)));
      const int word = _mm256_movemask_epi8(top);
      std::memcpy(bits + j * plane_bytes + i / 8, &word, sizeof(word));
    }
  }
  const __m256i room = _mm256_set1_epi8(static_cast<char>((1 << (planes - 1)) - 1));
  const bool fits = _mm256_testc_si256(room, magnitudes) != 0;
  return pack_few_planes(codes + i, n - i, planes, plane_bytes, bits + i / 8) && fits;
}
