// Products of bits with AVX2, which has no instruction to count them: a tree of carry-save adders (Harley and
// Seal) leaves one vector of eight to be counted, nibble by nibble, in a table in a register.
#include <immintrin.h>

#include <cstring>

#include "binary_kernels.h"

namespace bitnet {
namespace {

struct Sum {
  __m256i bit, carry;
};

__m256i load(const std::uint32_t* words) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(words));
}

__m256i broadcast(const std::uint32_t* word) {
  return _mm256_set1_epi32(static_cast<int>(*word));
}

Sum add(__m256i a, __m256i b, __m256i c) {
  const __m256i ab = _mm256_xor_si256(a, b);
  return {_mm256_xor_si256(ab, c), _mm256_or_si256(_mm256_and_si256(a, b), _mm256_and_si256(ab, c))};
}

// add_pair: `ones` plus the differences in two words of eight rows.
struct BinaryBits {
  static constexpr std::size_t kLines = 1;

  // The carry of a sum whose a ^ b is there already: b where that is 0, else c.
  static Sum add_pair(__m256i ones, const std::uint32_t* w, const std::uint32_t* x) {
    const __m256i both = _mm256_xor_si256(load(w), broadcast(x));
    const __m256i second = _mm256_xor_si256(load(w + kGroupRows), broadcast(x + 1));
    const __m256i other = _mm256_and_si256(both, _mm256_xor_si256(second, ones));
    return {_mm256_xor_si256(both, ones), _mm256_xor_si256(second, other)};
  }
};

struct TernaryBits {
  static constexpr std::size_t kLines = 2;

  static __m256i differing(const std::uint32_t* w, const std::uint32_t* x) {
    return _mm256_xor_si256(load(w + kGroupRows), _mm256_and_si256(load(w), broadcast(x)));
  }
  static Sum add_pair(__m256i ones, const std::uint32_t* w, const std::uint32_t* x) {
    return add(differing(w, x), differing(w + 2 * kGroupRows, x + 1), ones);
  }
};

__m256i count_in_bytes(__m256i v) {
  const __m256i counts =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i low = _mm256_shuffle_epi8(counts, _mm256_and_si256(v, nibble));
  const __m256i high = _mm256_shuffle_epi8(counts, _mm256_and_si256(_mm256_srli_epi16(v, 4), nibble));
  return _mm256_add_epi8(low, high);
}

// The four bytes (0..255) of each lane.
__m256i sum_bytes(__m256i v) {
  const __m256i even = _mm256_and_si256(v, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(v, 8);
  return _mm256_madd_epi16(_mm256_add_epi16(even, odd), _mm256_set1_epi16(1));
}

// Eight rows and `Planes` planes. A vector counted adds at most 8 to a byte, so 31 of them (248) fit.
template <class Bits, std::size_t Planes>
void count_half(const std::uint32_t* weights, std::size_t words, const std::uint32_t* x,
                std::int32_t* counts) {
  constexpr std::size_t kFoldWords = 31 * kStepWords, kLine = Bits::kLines * kGroupRows;
  __m256i ones[Planes], twos[Planes], fours[Planes], eights[Planes];
  for (std::size_t i = 0; i < Planes; ++i) ones[i] = twos[i] = fours[i] = eights[i] = _mm256_setzero_si256();
  for (std::size_t first = 0; first < words; first += kFoldWords) {
    const std::size_t last = first + kFoldWords < words ? first + kFoldWords : words;
    __m256i bytes[Planes];
    for (auto& value : bytes) value = _mm256_setzero_si256();
    for (std::size_t k = first; k < last; k += kStepWords) {
      const std::uint32_t* w = weights + k * kLine;
      for (std::size_t i = 0; i < Planes; ++i) {
        const std::uint32_t* v = x + i * words + k;
        const Sum a = Bits::add_pair(ones[i], w, v);
        const Sum b = Bits::add_pair(a.bit, w + 2 * kLine, v + 2);
        const Sum ab = add(a.carry, b.carry, twos[i]);
        const Sum c = Bits::add_pair(b.bit, w + 4 * kLine, v + 4);
        const Sum d = Bits::add_pair(c.bit, w + 6 * kLine, v + 6);
        const Sum cd = add(c.carry, d.carry, ab.bit);
        const Sum all = add(ab.carry, cd.carry, fours[i]);
        ones[i] = d.bit;
        twos[i] = cd.bit;
        fours[i] = all.bit;
        bytes[i] = _mm256_add_epi8(bytes[i], count_in_bytes(all.carry));
      }
    }
    for (std::size_t i = 0; i < Planes; ++i) eights[i] = _mm256_add_epi32(eights[i], sum_bytes(bytes[i]));
  }
  for (std::size_t i = 0; i < Planes; ++i) {
    const auto twice = [](__m256i v) { return _mm256_add_epi8(v, v); };
    __m256i rest = twice(count_in_bytes(fours[i]));  // the rest is at most 7 * 8 in a byte
    rest = twice(_mm256_add_epi8(rest, count_in_bytes(twos[i])));
    rest = _mm256_add_epi8(rest, count_in_bytes(ones[i]));
    const __m256i total = _mm256_add_epi32(_mm256_slli_epi32(eights[i], 3), sum_bytes(rest));
    _mm256_store_si256(reinterpret_cast<__m256i*>(counts + i * kGroupRows), total);
  }
}

// Two planes at a time: 8 registers of sums, and the adders of one hide the latency of the other's.
template <class Bits>
void count_planes(const std::uint32_t* weights, std::size_t words, const std::uint32_t* x, std::size_t planes,
                  Counts& counts) {
  for (std::size_t half = 0; half < kGroupRows; half += 8) {
    std::size_t i = 0;
    for (; i + 2 <= planes; i += 2)
      count_half<Bits, 2>(weights + half, words, x + i * words, &counts[i][half]);
    if (i < planes) count_half<Bits, 1>(weights + half, words, x + i * words, &counts[i][half]);
  }
}

#include "binary_gemm.h"
#include "binary_pack_avx.h"

constexpr BinaryKernels avx2_table = {"avx2", bit_gemm<BinaryBits>, bit_gemm<TernaryBits>, pack_signs,
                                      pack_planes};

}  // namespace

const BinaryKernels avx2_binary_kernels = avx2_table;

}  // namespace bitnet
