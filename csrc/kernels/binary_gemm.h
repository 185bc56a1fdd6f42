// How bit products walk over rows and tokens: the same for every instruction set. The files include it inside
// their anonymous namespaces, as they do float_kernels.h, after they have defined
//
//   template <class Bits>
//   void count_planes(const std::uint32_t* weights, std::size_t words, const std::uint32_t* x,
//                     std::size_t planes, Counts& counts);
//
// counts[i][lane] = differing bits of row `lane` of a group and plane i of x, up to kTilePlanes of them.

// Rows run fastest: a tile's planes (2.5 KB at 2560 columns) stay in L1 and each token's results are written
// from left to right, while the weights of a call come from L2.
template <class Bits>
void bit_gemm(const BitProduct& product) {
  const std::size_t tile_tokens = kTilePlanes / product.planes;
  for (std::size_t t = 0; t < product.tokens; t += tile_tokens) {
    const std::size_t tokens = product.tokens - t < tile_tokens ? product.tokens - t : tile_tokens;
    for (std::size_t row = 0; row < product.rows; row += kGroupRows) {
      const std::uint32_t* weights = product.weights + row * product.words * Bits::kLines;
      const std::size_t rows = product.rows - row < kGroupRows ? product.rows - row : kGroupRows;
      alignas(64) Counts counts;
      count_planes<Bits>(weights, product.words, product.x + t * product.planes * product.words,
                         tokens * product.planes, counts);
      for (std::size_t i = 0; i < tokens; ++i) {
        alignas(64) std::int32_t sums[kGroupRows];
        for (std::size_t lane = 0; lane < kGroupRows; ++lane)
          sums[lane] = product.base[row + lane] + product.factors[0] * counts[i * product.planes][lane];
        for (std::size_t j = 1; j < product.planes; ++j)
          for (std::size_t lane = 0; lane < kGroupRows; ++lane)
            sums[lane] += product.factors[j] * counts[i * product.planes + j][lane];
        std::int32_t* y = product.y + (t + i) * product.y_stride + row;
        if (rows == kGroupRows)
          std::memcpy(y, sums, sizeof(sums));
        else
          std::memcpy(y, sums, rows * sizeof(sums[0]));
      }
    }
  }
}
