#include "linear.h"

#include <algorithm>
#include <utility>

namespace bitnet {
namespace {

// One task: 32 rows are 20 KB of weights at 2560 columns, enough to amortise taking a task and few enough to
// balance two threads; 64 tokens keep the int32 tile (8 KB) on the stack and in L1.
constexpr std::size_t kTaskRows = 32;
constexpr std::size_t kTaskTokens = 64;
// Few tokens wait for memory: a task is 160 KB that stream in one piece (with 20 KB two threads reach 67% of
// the bandwidth).
constexpr std::size_t kFewTokens = 4;
constexpr std::size_t kFewTokensRows = 256;
static_assert(kFewTokens * kFewTokensRows <= kTaskTokens * kTaskRows);

// A task of the table kernel. Building tables costs 81 / rows; 1280 rows' sums and one cache line of each
// row's weights are 400 KB, which stays in L2. With many threads and few tokens tiles shrink to a quarter,
// but no further, and layers narrower than that take the other kernel.
constexpr std::size_t kTableRows = 1280;
constexpr std::size_t kFewestTableRows = kTableRows / 4;

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

// What a task works on: some rows of one layer, some tokens.
struct Tile {
  const LinearOutput* output;
  std::size_t first_row, rows, first_token, tokens;
};

// Tokens first..first+count of every layer, cut into tiles. Rows vary slowest, so that a thread reuses
// weights from its cache for the next tokens.
struct Grid {
  const std::vector<LinearOutput>& outputs;
  std::size_t first_token, tokens, tile_rows, tile_tokens;

  std::size_t token_tiles() const { return (tokens + tile_tokens - 1) / tile_tokens; }
  std::size_t row_tiles(const LinearOutput& output) const {
    return (output.linear->rows + tile_rows - 1) / tile_rows;
  }
  std::size_t size() const {
    std::size_t rows = 0;
    for (const LinearOutput& output : outputs) rows += row_tiles(output);
    return rows * token_tiles();
  }
  Tile tile(std::size_t index) const {
    std::size_t row = index / token_tiles();
    const std::size_t token = index % token_tiles() * tile_tokens;
    const LinearOutput* output = outputs.data();
    for (; row >= row_tiles(*output); ++output) row -= row_tiles(*output);
    // Equal tiles: a layer's last one would otherwise be a short rest.
    const std::size_t total = output->linear->rows, count = row_tiles(*output);
    const std::size_t first = total * row / count, last = total * (row + 1) / count;
    return {output, first, last - first, first_token + token, std::min(tile_tokens, tokens - token)};
  }
};

// y = sums * scales, sums [tile.tokens][stride].
void write_tile(const Kernels& kernels, const Tile& tile, const float* x_scales, const std::int32_t* sums,
                std::size_t stride) {
  constexpr std::size_t kPiece = 64;
  const LinearOutput& output = *tile.output;
  const Linear& linear = *output.linear;
  const float* bias = linear.bias.empty() ? nullptr : linear.bias.data() + tile.first_row;
  for (std::size_t t = 0; t < tile.tokens; ++t, sums += stride) {
    const float factor = linear.scale / x_scales[tile.first_token + t];
    float* y = output.y + (tile.first_token + t) * output.stride + tile.first_row;
    if (!output.add) {
      kernels.dequantize(sums, tile.rows, factor, bias, y);
      continue;
    }
    for (std::size_t first = 0; first < tile.rows; first += kPiece) {
      float delta[kPiece];
      const std::size_t count = std::min(kPiece, tile.rows - first);
      kernels.dequantize(sums + first, count, factor, bias == nullptr ? nullptr : bias + first, delta);
      for (std::size_t i = 0; i < count; ++i) y[first + i] += delta[i];
    }
  }
}

void run_tile(const Kernels& kernels, const Tile& tile, const QuantizedRows& x) {
  std::int32_t sums[kTaskTokens * kTaskRows];
  kernels.ternary_gemm(tile.output->linear->weights.data() + tile.first_row * (x.columns / 4), tile.rows,
                       x.columns, x.codes.data() + tile.first_token * x.columns,
                       x.sums.data() + tile.first_token, tile.tokens, sums, tile.rows);
  write_tile(kernels, tile, x.scales.data(), sums, tile.rows);
}

// Padded by a cache line, so that tokens of 1024 rows do not all fall in the same cache sets.
constexpr std::size_t sums_stride(std::size_t rows) {
  return (rows + 15) / 16 * 16 + 16;
}

// A thread's share of the scratch: what the kernel wants, then its sums.
constexpr std::size_t thread_scratch_bytes(std::size_t rows) {
  return (table_scratch_bytes(rows) + 63) / 64 * 64 + kTableTokens * sums_stride(rows) * sizeof(std::int32_t);
}

void run_table_tile(const Kernels& kernels, const Tile& tile, const QuantizedRows& x, std::uint8_t* scratch) {
  const std::size_t stride = sums_stride(tile.rows);
  auto* sums = reinterpret_cast<std::int32_t*>(scratch + (table_scratch_bytes(tile.rows) + 63) / 64 * 64);
  kernels.ternary_gemm_many(tile.output->linear->weights.data() + tile.first_row * (x.columns / 4), tile.rows,
                            x.columns, x.codes.data() + tile.first_token * x.columns, tile.tokens, scratch,
                            sums, stride);
  write_tile(kernels, tile, x.scales.data(), sums, stride);
}

// How many of the tokens go through tables: whole blocks, and a rest that is large enough.
std::size_t table_tokens(const Kernels& kernels, std::size_t tokens, std::size_t rows) {
  if (kernels.ternary_gemm_many == nullptr || rows < kFewestTableRows) return 0;
  const std::size_t rest = tokens % kTableTokens;
  return rest < kernels.fewest_many ? tokens - rest : tokens;
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
  constexpr std::size_t kTaskColumns = 64;
  by_column = Buffer<std::uint8_t>(columns * column_bytes());
  const std::size_t quarter = rows / 4;
  pool.run((columns + kTaskColumns - 1) / kTaskColumns, [&](std::size_t task, std::size_t) {
    const std::size_t first = task * kTaskColumns, last = std::min(first + kTaskColumns, columns);
    // code 1, value 0, in the rows of the last chunk that do not exist
    std::fill(by_column.data() + first * column_bytes(), by_column.data() + last * column_bytes(),
              std::uint8_t{0x55});
    for (std::size_t row = 0; row < rows; ++row) {
      const std::size_t field = row % kChunkRows / kChunkBytes;
      const std::size_t byte = row / kChunkRows * kChunkBytes + row % kChunkBytes;
      const std::uint8_t* source = packed + row % quarter * columns;
      const unsigned shift = static_cast<unsigned>(2 * (row / quarter));
      const unsigned clear = ~(3u << (2 * field));
      for (std::size_t column = first; column < last; ++column) {
        std::uint8_t& to = by_column.data()[column * column_bytes() + byte];
        to = static_cast<std::uint8_t>((to & clear) | (((source[column] >> shift) & 3u) << (2 * field)));
      }
    }
  });
}

void run_linears(const Kernels& kernels, ThreadPool& pool, QuantizedRows& x, std::size_t tokens,
                 const std::vector<LinearOutput>& outputs) {
  std::size_t rows = 0;
  for (const LinearOutput& output : outputs) rows += output.linear->rows;
  const std::size_t by_table = table_tokens(kernels, tokens, rows);
  Grid tables{outputs, 0, by_table, kTableRows, kTableTokens};
  const Grid rest{outputs, by_table, tokens - by_table, tokens <= kFewTokens ? kFewTokensRows : kTaskRows,
                  kTaskTokens};
  while (tables.tile_rows > kFewestTableRows && tables.size() < pool.threads()) tables.tile_rows /= 2;
  const std::size_t scratch_bytes = thread_scratch_bytes(tables.tile_rows);
  if (by_table > 0) x.scratch.reserve(pool.threads() * scratch_bytes);
  const std::size_t table_tiles = tables.size();
  pool.run(table_tiles + rest.size(), [&](std::size_t task, std::size_t thread) {
    if (task < table_tiles)
      run_table_tile(kernels, tables.tile(task), x, x.scratch.data() + thread * scratch_bytes);
    else
      run_tile(kernels, rest.tile(task - table_tiles), x);
  });
}

}  // namespace bitnet
