// A binary matrix times int8 activations, exact in int32: the engine's kernels for one bit a weight
// (kernels.h) without scales.
#pragma once

#include <cstddef>
#include <cstdint>

#include "bit_matrix.h"
#include "kernels/kernels.h"

namespace bitnet {

class SignMatrix {
 public:
  static constexpr std::size_t kMostColumns = (std::size_t{1} << 22) - kBlockWeights;  // sign_gemm's limit

  // The weights of a binary matrix once more, as these kernels want them.
  SignMatrix(const BitMatrix& matrix, ThreadPool& pool);

  // y[t][n], x [tokens][columns], any int8. Blocks of 32 tokens, or nearly as many, go through tables, which
  // are twice as fast, unless one of their codes is -128.
  void multiply(const Kernels& kernels, ThreadPool& pool, BitScratch& scratch, const std::int8_t* x,
                std::size_t tokens, std::int32_t* y) const;

 private:
  std::size_t rows_, columns_;
  Buffer<std::uint8_t> weights_;
};

}  // namespace bitnet
