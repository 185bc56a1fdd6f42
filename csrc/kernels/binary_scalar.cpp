// The reference for products of bits: plain loops that every other instruction set must reproduce.
#include <cstring>

#include "binary_kernels.h"

namespace bitnet {
namespace {

std::int32_t popcount(std::uint32_t bits) {
  std::int32_t count = 0;
  for (; bits != 0; bits &= bits - 1) ++count;
  return count;
}

struct BinaryBits {
  static constexpr std::size_t kLines = 1;

  static std::int32_t differing(const std::uint32_t* w, std::uint32_t x0, std::uint32_t x1) {
    const std::uint32_t both = w[0] ^ x0, second = w[kGroupRows] ^ x1;
    return popcount(both ^ second) + popcount(second);
  }
};

struct TernaryBits {
  static constexpr std::size_t kLines = 2;

  static std::int32_t differing(const std::uint32_t* w, std::uint32_t x0, std::uint32_t x1) {
    const std::uint32_t *nonzero = w, *plus = w + kGroupRows;
    return popcount(plus[0] ^ (nonzero[0] & x0)) +
           popcount(plus[2 * kGroupRows] ^ (nonzero[2 * kGroupRows] & x1));
  }
};

template <class Bits>
void count_planes(const std::uint32_t* weights, std::size_t words, const std::uint32_t* x, std::size_t planes,
                  Counts& counts) {
  for (std::size_t i = 0; i < planes; ++i, x += words) {
    for (std::size_t lane = 0; lane < kGroupRows; ++lane) {
      std::int32_t count = 0;
      for (std::size_t k = 0; k < words; k += 2)
        count += Bits::differing(weights + k * Bits::kLines * kGroupRows + lane, x[k], x[k + 1]);
      counts[i][lane] = count;
    }
  }
}

#include "binary_gemm.h"
#include "binary_pack.h"

bool pack_planes(const std::int8_t* codes, std::size_t n, std::size_t planes, std::uint8_t* bits) {
  return pack_few_planes(codes, n, planes, (n + 7) / 8, bits);
}

constexpr BinaryKernels scalar_table = {"scalar", bit_gemm<BinaryBits>, bit_gemm<TernaryBits>, pack_few_signs,
                                        pack_planes};

}  // namespace

const BinaryKernels scalar_binary_kernels = scalar_table;

}  // namespace bitnet
