// Products of bits with NEON's count of the bits of each byte, on any 64-bit ARM CPU.
#include <arm_neon.h>

#include <cstring>

#include "binary_kernels.h"

namespace bitnet {
namespace {

// differing: the bits of two words of four rows that differ, counted in bytes (at most 16).
struct BinaryBits {
  static constexpr std::size_t kLines = 1;

  static uint8x16_t differing(const std::uint32_t* w, const std::uint32_t* x) {
    const uint32x4_t both = veorq_u32(vld1q_u32(w), vdupq_n_u32(x[0]));
    const uint32x4_t second = veorq_u32(vld1q_u32(w + kGroupRows), vdupq_n_u32(x[1]));
    return vaddq_u8(vcntq_u8(vreinterpretq_u8_u32(veorq_u32(both, second))),
                    vcntq_u8(vreinterpretq_u8_u32(second)));
  }
};

struct TernaryBits {
  static constexpr std::size_t kLines = 2;

  static uint8x16_t differing_once(const std::uint32_t* w, const std::uint32_t* x) {
    const uint32x4_t bits = veorq_u32(vld1q_u32(w + kGroupRows), vandq_u32(vld1q_u32(w), vdupq_n_u32(*x)));
    return vcntq_u8(vreinterpretq_u8_u32(bits));
  }
  static uint8x16_t differing(const std::uint32_t* w, const std::uint32_t* x) {
    return vaddq_u8(differing_once(w, x), differing_once(w + 2 * kGroupRows, x + 1));
  }
};

// Sixteen rows and one plane. A step of eight words adds at most 64 to a byte, so three of them (192) fit.
template <class Bits>
void count_plane(const std::uint32_t* weights, std::size_t words, const std::uint32_t* x,
                 std::int32_t* counts) {
  constexpr std::size_t kFoldWords = 3 * kStepWords;
  uint32x4_t total[4];
  for (auto& value : total) value = vdupq_n_u32(0);
  for (std::size_t first = 0; first < words; first += kFoldWords) {
    const std::size_t last = first + kFoldWords < words ? first + kFoldWords : words;
    uint8x16_t bytes[4];
    for (auto& value : bytes) value = vdupq_n_u8(0);
    for (std::size_t k = first; k < last; k += 2)
      for (std::size_t part = 0; part < 4; ++part)
        bytes[part] =
            vaddq_u8(bytes[part], Bits::differing(weights + k * Bits::kLines * kGroupRows + 4 * part, x + k));
    for (std::size_t part = 0; part < 4; ++part)
      total[part] = vpadalq_u16(total[part], vpaddlq_u8(bytes[part]));
  }
  for (std::size_t part = 0; part < 4; ++part)
    vst1q_s32(counts + 4 * part, vreinterpretq_s32_u32(total[part]));
}

template <class Bits>
void count_planes(const std::uint32_t* weights, std::size_t words, const std::uint32_t* x, std::size_t planes,
                  Counts& counts) {
  for (std::size_t i = 0; i < planes; ++i) count_plane<Bits>(weights, words, x + i * words, counts[i]);
}

#include "binary_gemm.h"
#include "binary_pack.h"

// One bit of each lane, all to be summed.
constexpr std::uint8_t kBitOfLane[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};

// The 16 bits whose lanes are all ones.
std::uint16_t gather_bits(uint8x16_t lanes) {
  const uint8x16_t bits = vandq_u8(lanes, vld1q_u8(kBitOfLane));
  return static_cast<std::uint16_t>(vaddv_u8(vget_low_u8(bits)) | vaddv_u8(vget_high_u8(bits)) << 8);
}

bool pack_signs(const float* x, std::size_t n, std::uint8_t* bits) {
  uint32x4_t numbers = vdupq_n_u32(~0u);
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    uint16x4_t positive[4];
    for (std::size_t j = 0; j < 4; ++j) {
      const float32x4_t v = vld1q_f32(x + i + 4 * j);
      numbers = vandq_u32(numbers, vceqq_f32(v, v));
      positive[j] = vmovn_u32(vcgtzq_f32(v));
    }
    const std::uint16_t word = gather_bits(vcombine_u8(vmovn_u16(vcombine_u16(positive[0], positive[1])),
                                                       vmovn_u16(vcombine_u16(positive[2], positive[3]))));
    std::memcpy(bits + i / 8, &word, sizeof(word));
  }
  const bool all = vminvq_u32(numbers) != 0;
  return pack_few_signs(x + i, n - i, bits + i / 8) && all;
}

bool pack_planes(const std::int8_t* codes, std::size_t n, std::size_t planes, std::uint8_t* bits) {
  const std::size_t plane_bytes = (n + 7) / 8;
  uint8x16_t magnitudes = vdupq_n_u8(0);  // bits in which a code differs from its sign
  std::size_t i = 0;
  for (; i + 16 <= n; i += 16) {
    const int8x16_t v = vld1q_s8(codes + i);
    magnitudes = vorrq_u8(magnitudes, vreinterpretq_u8_s8(veorq_s8(v, vshrq_n_s8(v, 7))));
    for (std::size_t j = 0; j < planes; ++j) {
      const std::uint16_t word =
          gather_bits(vtstq_u8(vreinterpretq_u8_s8(v), vdupq_n_u8(static_cast<std::uint8_t>(1u << j))));
      std::memcpy(bits + j * plane_bytes + i / 8, &word, sizeof(word));
    }
  }
  const bool fits = vmaxvq_u8(magnitudes) < 1u << (planes - 1);
  return pack_few_planes(codes + i, n - i, planes, plane_bytes, bits + i / 8) && fits;
}

constexpr BinaryKernels neon_table = {"neon", bit_gemm<BinaryBits>, bit_gemm<TernaryBits>, pack_signs,
                                      pack_planes};

}  // namespace

const BinaryKernels neon_binary_kernels = neon_table;

}  // namespace bitnet
