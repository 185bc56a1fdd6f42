#include "linear.h"

#include <algorithm>
#include <utility>

namespace bitnet {
namespace {

// One task: 32 rows are 20 KB of weights at 2560 columns, enough to amortise taking a task and few enough to
// balance two threads; 64 tokens keep the int32 tile (8 KB) on the stack and in L1.
constexpr std::size_t kTaskRows = 32;
constexpr std::size_t kTaskTokens = 64;

// One block (128 weights, 32 bytes) of each of the four rows that share the packed bytes.
void repack_block(const std::uint8_t* packed, std::uint8_t* const rows[4], std::size_t offset) {
  for (unsigned i = 0; i < 4; ++i) {
    std::uint8_t* out = rows[i] + offset;
    for (std::size_t j = 0; j < kBlockBytes; ++j) {
      unsigned byte = 0;
      for (unsigned field = 0; field < 4; ++field)
        byte |= ((packed[32 * field + j] >> (2 * i)) & 3u) << (2 * field);
      out[j] = static_cast<std::uint8_t>(byte);
    }
  }
}

void run_tile(const Kernels& kernels, const LinearOutput& output, const QuantizedRows& x,
              std::size_t first_row, std::size_t first_token, std::size_t tokens) {
  const Linear& linear = *output.linear;
  const std::size_t rows = std::min(kTaskRows, linear.rows - first_row);
  std::int32_t sums[kTaskTokens * kTaskRows];
  kernels.ternary_gemm(linear.weights.data() + first_row * (x.columns / 4), rows, x.columns,
                       x.codes.data() + first_token * x.columns, x.sums.data() + first_token, tokens, sums,
                       kTaskRows);
  const float* bias = linear.bias.empty() ? nullptr : linear.bias.data() + first_row;
  for (std::size_t t = 0; t < tokens; ++t) {
    const float factor = linear.scale / x.scales.data()[first_token + t];
    float* y = output.y + (first_token + t) * output.stride + first_row;
    if (!output.add) {
      kernels.dequantize(sums + t * kTaskRows, rows, factor, bias, y);
      continue;
    }
    float delta[kTaskRows];
    kernels.dequantize(sums + t * kTaskRows, rows, factor, bias, delta);
    for (std::size_t r = 0; r < rows; ++r) y[r] += delta[r];
  }
}

}  // namespace

Linear Linear::from_packed(const std::uint8_t* packed, std::size_t rows, std::size_t columns, float scale,
                           std::vector<float> bias, ThreadPool& pool) {
  Linear linear;
  linear.rows = rows;
  linear.columns = columns;
  linear.scale = scale;
  linear.bias = std::move(bias);
  const std::size_t row_bytes = padded_columns(columns) / 4, quarter = rows / 4;
  linear.weights = Buffer<std::uint8_t>(rows * row_bytes);
  pool.run(quarter, [&](std::size_t r, std::size_t) {
    std::uint8_t* out[4];
    for (std::size_t i = 0; i < 4; ++i) out[i] = linear.weights.data() + (r + i * quarter) * row_bytes;
    const std::uint8_t* source = packed + r * columns;
    std::size_t block = 0;
    for (; (block + 1) * kBlockWeights <= columns; ++block)
      repack_block(source + block * kBlockWeights, out, block * kBlockBytes);
    if (block * kBlockWeights < columns) {
      std::uint8_t padded[kBlockWeights];
      std::fill(padded, padded + kBlockWeights, std::uint8_t{0x55});  // code 1, value 0
      std::copy(source + block * kBlockWeights, source + columns, padded);
      repack_block(padded, out, block * kBlockBytes);
    }
  });
  return linear;
}

void Linear::add_columns(const std::uint8_t* packed, ThreadPool& pool) {
  by_column = Buffer<std::uint8_t>(row_chunks() * columns * kChunkBytes);
  const std::size_t quarter = rows / 4;
  pool.run(row_chunks(), [&](std::size_t index, std::size_t) {
    std::uint8_t* out = by_column.data() + index * columns * kChunkBytes;
    std::fill(out, out + columns * kChunkBytes,
              std::uint8_t{0x55});  // code 1, value 0, in rows that do not exist
    const std::size_t first = index * kChunkRows, last = std::min(first + kChunkRows, rows);
    for (std::size_t row = first; row < last; ++row) {
      const std::size_t field = (row - first) / kChunkBytes, byte = (row - first) % kChunkBytes;
      const std::uint8_t* source = packed + row % quarter * columns;
      const unsigned shift = static_cast<unsigned>(2 * (row / quarter));
      const auto clear = static_cast<std::uint8_t>(~(3u << (2 * field)));
      for (std::size_t column = 0; column < columns; ++column) {
        std::uint8_t& to = out[column * kChunkBytes + byte];
        to = static_cast<std::uint8_t>((to & clear) | (((source[column] >> shift) & 3u) << (2 * field)));
      }
    }
  });
}

void run_linears(const Kernels& kernels, ThreadPool& pool, const QuantizedRows& x, std::size_t tokens,
                 std::initializer_list<LinearOutput> outputs) {
  const std::size_t token_tiles = (tokens + kTaskTokens - 1) / kTaskTokens;
  std::size_t row_tiles = 0;
  for (const LinearOutput& output : outputs) row_tiles += (output.linear->rows + kTaskRows - 1) / kTaskRows;
  pool.run(row_tiles * token_tiles, [&](std::size_t task, std::size_t) {
    // Row tiles vary slowest, so that a thread reuses weights from its cache for the next tokens.
    std::size_t row_tile = task / token_tiles;
    const std::size_t first_token = task % token_tiles * kTaskTokens;
    for (const LinearOutput& output : outputs) {
      const std::size_t tiles = (output.linear->rows + kTaskRows - 1) / kTaskRows;
      if (row_tile < tiles)
        return run_tile(kernels, output, x, row_tile * kTaskRows, first_token,
                        std::min(kTaskTokens, tokens - first_token));
      row_tile -= tiles;
    }
  });
}

}  // namespace bitnet
