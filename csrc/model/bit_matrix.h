// A matrix of one-bit or ternary weights, times activations of 1 to 8 bits in planes, exact in int32. The
// identities are those at the top of kernels/binary_kernels.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "buffer.h"
#include "kernels/binary_kernels.h"
#include "thread_pool.h"

namespace bitnet {

// Working memory that products of one caller share; grows to what the largest needs.
struct BitScratch {
  Buffer<std::uint32_t> x;
  Buffer<std::uint8_t> bytes;
};

// Rows of signs or planes for products, [tokens][(columns + 7) / 8] or [tokens][planes][(columns + 7) / 8].
// False where x holds a NaN, or a code needs more bits than there are planes.
bool pack_signs(const BinaryKernels& kernels, ThreadPool& pool, const float* x, std::size_t tokens,
                std::size_t columns, std::uint8_t* bits);
bool pack_planes(const BinaryKernels& kernels, ThreadPool& pool, const std::int8_t* codes, std::size_t tokens,
                 std::size_t columns, std::size_t planes, std::uint8_t* bits);

class BitMatrix {
 public:
  // Rows of bits as pack_signs makes them, (columns + 7) / 8 bytes each; bits beyond the last column are
  // ignored.
  static BitMatrix binary(const std::uint8_t* bits, std::size_t rows, std::size_t columns, ThreadPool& pool);
  // plus - minus. Throws std::invalid_argument where a weight is both.
  static BitMatrix ternary(const std::uint8_t* plus, const std::uint8_t* minus, std::size_t rows,
                           std::size_t columns, ThreadPool& pool);

  std::size_t rows() const { return rows_; }
  std::size_t columns() const { return columns_; }
  std::size_t words() const { return words_; }
  bool is_ternary() const { return ternary_; }

  // The bits of a row of a binary matrix, words() words with the low bit first, 0 beyond the last column.
  void read_row(std::size_t row, std::uint32_t* words) const;

  // y[t][n], x [tokens][(columns + 7) / 8]: activations -1 and +1.
  void multiply_signs(const BinaryKernels& kernels, ThreadPool& pool, BitScratch& scratch,
                      const std::uint8_t* x, std::size_t tokens, std::int32_t* y) const;
  // The same for x [tokens][planes][(columns + 7) / 8], two's complement.
  void multiply_planes(const BinaryKernels& kernels, ThreadPool& pool, BitScratch& scratch,
                       const std::uint8_t* x, std::size_t tokens, std::size_t planes, std::int32_t* y) const;

 private:
  BitMatrix(std::size_t rows, std::size_t columns, bool ternary);
  void multiply(const BinaryKernels& kernels, ThreadPool& pool, BitScratch& scratch, const std::uint8_t* x,
                std::size_t tokens, std::size_t planes, const std::int32_t* base, const std::int32_t* factors,
                std::int32_t* y) const;

  std::size_t rows_, columns_, words_;
  bool ternary_;
  Buffer<std::uint32_t> weights_;
  // of each row, padded ones too: how many weights are not 0, and minus how many are +1
  Buffer<std::int32_t> nonzero_, minus_plus_;
};

}  // namespace bitnet
