// Products of one-bit values by counting bits: the contract, which every instruction set fills as it does
// kernels.h, and the same bits everywhere.
//
// With one bit a value (1 for +1, 0 for -1) the product of two rows of signs is K - 2 D, where D is the
// number of columns in which they differ: popcount(w xor x). Everything here is made of such counts:
//   binary w,  signs x                w . x = K - 2 D
//   binary w,  x in two's complement  plane j of x, bits b of weight c: w . b = P - D, P the ones of w.
//                                     The c sum to -1, so w . x = -P - sum of c D
//   ternary w  counts differences only where w is not 0: with P the +1 and N the -1 of w,
//              D = popcount(P & ~x | N & x), w . x = (P + N) - 2 D for signs, -P - sum of c D for planes
// or y[n] = base[n] + sum over planes of factor * D. Bits beyond the last column are 0 on both sides and
// never differ.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels.h"

namespace bitnet {

// Sixteen rows (a group) stand side by side: word k, columns 32k to 32k + 31 with the low bit first, of all
// of them is one cache line. A lane then holds one row's count, and nothing is ever summed across a register.
// Rows and columns are padded with 0 to whole groups and to an even eight words.
//   binary   of each two words the first holds the exclusive or of both, in the weights and in x, so that
//            (w0 ^ x0) ^ (w1 ^ x1), the sum's bit of a carry-save adder, costs one operation
//   ternary  a word is two lines: bits that are not 0, then bits that are +1; x as it is
constexpr std::size_t kGroupRows = 16;
constexpr std::size_t kWordColumns = 32;
constexpr std::size_t kStepWords = 8;
constexpr std::size_t kMostPlanes = 8;

// A tile of a product: a group of rows and as many planes, of one token or several.
constexpr std::size_t kTilePlanes = kMostPlanes;
using Counts = std::int32_t[kTilePlanes][kGroupRows];

constexpr std::size_t padded_rows(std::size_t rows) {
  return (rows + kGroupRows - 1) / kGroupRows * kGroupRows;
}
constexpr std::size_t padded_words(std::size_t columns) {
  constexpr std::size_t step = kStepWords * kWordColumns;
  return (columns + step - 1) / step * kStepWords;
}

// y[t][n] = base[n] + sum over j of factors[j] * differing(w[n], x[t][j]), for n < rows.
struct BitProduct {
  const std::uint32_t* weights;  // whole groups
  const std::int32_t* base;      // [padded_rows(rows)]
  std::size_t rows, words;
  const std::uint32_t* x;  // [tokens][planes][words]
  std::size_t tokens, planes;
  const std::int32_t* factors;  // [planes]
  std::int32_t* y;              // element (t, n) at y[t * y_stride + n]
  std::size_t y_stride;
};

struct BinaryKernels {
  const char* name;

  void (*binary_gemm)(const BitProduct& product);
  void (*ternary_gemm)(const BitProduct& product);

  // Bits of one token, 8 columns a byte, low bit first; what the last byte has left is 0.
  // 1 where x > 0. False if x holds a NaN.
  bool (*pack_signs)(const float* x, std::size_t n, std::uint8_t* bits);
  // Plane j, (n + 7) / 8 bytes each, holds bit j of every code. False if a code needs more than `planes`
  // bits.
  bool (*pack_planes)(const std::int8_t* codes, std::size_t n, std::size_t planes, std::uint8_t* bits);
};

// Those that go with a table of the other kernels: the best that need no more than this CPU has.
const BinaryKernels& binary_kernels(const Kernels& kernels);

// Compares each of them with the scalar ones, bit for bit.
std::vector<SelfTestResult> binary_self_test(const BinaryKernels& candidate);

extern const BinaryKernels scalar_binary_kernels;
extern const BinaryKernels avx2_binary_kernels;
extern const BinaryKernels avx512_binary_kernels;
extern const BinaryKernels neon_binary_kernels;

}  // namespace bitnet
