// Products of bits with AVX-512 and VPOPCNTDQ: Intel since Ice Lake, AMD since Zen 4.
#include <immintrin.h>

#include <cstring>

#include "binary_kernels.h"

namespace bitnet {
namespace {

__m512i broadcast(const std::uint32_t* word) {
  return _mm512_set1_epi32(static_cast<int>(*word));
}

// Sixteen rows and `Planes` planes: eight planes' sums and bits take 16 of the 32 registers.
struct BinaryBits {
  static constexpr std::size_t kLines = 1;

  // Each two words and the bit left over from those before go through a carry-save adder: three logical
  // operations and one count for two words. A carry counts twice.
  template <std::size_t Planes>
  static void count(const std::uint32_t* weights, std::size_t words, const std::uint32_t* x,
                    std::int32_t (*counts)[kGroupRows]) {
    constexpr int kXor = 0x96;    // a ^ b ^ c
    constexpr int kCarry = 0x8e;  // the carry of (s ^ b ^ c) + b + c, whose sum's bit is s
    __m512i ones[Planes], twos[Planes];
    for (std::size_t i = 0; i < Planes; ++i) ones[i] = twos[i] = _mm512_setzero_si512();
    for (std::size_t k = 0; k < words; k += 2) {
      const __m512i w_both = _mm512_load_si512(weights + k * kGroupRows);
      const __m512i w_second = _mm512_load_si512(weights + (k + 1) * kGroupRows);
#pragma GCC unroll 8
      for (std::size_t i = 0; i < Planes; ++i) {
        const std::uint32_t* v = x + i * words + k;
        const __m512i second = _mm512_xor_si512(w_second, broadcast(v + 1));
        const __m512i sum = _mm512_ternarylogic_epi32(ones[i], w_both, broadcast(v), kXor);
        const __m512i carry = _mm512_ternarylogic_epi32(sum, second, ones[i], kCarry);
        twos[i] = _mm512_add_epi32(twos[i], _mm512_popcnt_epi32(carry));
        ones[i] = sum;
      }
    }
    for (std::size_t i = 0; i < Planes; ++i)
      _mm512_store_si512(counts[i],
                         _mm512_add_epi32(_mm512_slli_epi32(twos[i], 1), _mm512_popcnt_epi32(ones[i])));
  }
};

struct TernaryBits {
  static constexpr std::size_t kLines = 2;

  template <std::size_t Planes>
  static void count(const std::uint32_t* weights, std::size_t words, const std::uint32_t* x,
                    std::int32_t (*counts)[kGroupRows]) {
    constexpr int kDiffering = 0x6c;  // plus ^ (nonzero & x), operands nonzero, plus, x
    __m512i total[Planes];
    for (auto& value : total) value = _mm512_setzero_si512();
    for (std::size_t k = 0; k < words; ++k) {
      const __m512i nonzero = _mm512_load_si512(weights + 2 * k * kGroupRows);
      const __m512i plus = _mm512_load_si512(weights + (2 * k + 1) * kGroupRows);
#pragma GCC unroll 8
      for (std::size_t i = 0; i < Planes; ++i) {
        const __m512i bits =
            _mm512_ternarylogic_epi32(nonzero, plus, broadcast(x + i * words + k), kDiffering);
        total[i] = _mm512_add_epi32(total[i], _mm512_popcnt_epi32(bits));
      }
    }
    for (std::size_t i = 0; i < Planes; ++i) _mm512_store_si512(counts[i], total[i]);
  }
};

template <class Bits>
void count_planes(const std::uint32_t* weights, std::size_t words, const std::uint32_t* x, std::size_t planes,
                  Counts& counts) {
  static_assert(kTilePlanes == 8, "the tiles below");
  if (planes == 8) return Bits::template count<8>(weights, words, x, counts);
  std::size_t i = 0;
  for (std::size_t size = 4; size >= 1; size /= 2) {
    if ((planes & size) == 0) continue;
    const auto count = size == 4   ? Bits::template count<4>
                       : size == 2 ? Bits::template count<2>
                                   : Bits::template count<1>;
    count(weights, words, x + i * words, counts + i);
    i += size;
  }
}

#include "binary_gemm.h"
#include "binary_pack_avx.h"

constexpr BinaryKernels avx512_table = {"avx512_vpopcntdq", bit_gemm<BinaryBits>, bit_gemm<TernaryBits>,
                                        pack_signs, pack_planes};

}  // namespace

const BinaryKernels avx512_binary_kernels = avx512_table;

}  // namespace bitnet
