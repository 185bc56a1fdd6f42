#include "linear.h"

#include <algorithm>

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
  const bool by_row = linear.scales_by_row();
  const float* scales = linear.scales.data() + (by_row ? tile.first_row : 0);
  const float* bias = linear.bias.empty() ? nullptr : linear.bias.data() + tile.first_row;
  for (std::size_t t = 0; t < tile.tokens; ++t, sums += stride) {
    const float x_scale = x_scales[tile.first_token + t];
    float* y = output.y + (tile.first_token + t) * output.stride + tile.first_row;
    if (!output.add) {
      dequantize(kernels, sums, tile.rows, scales, by_row, x_scale, bias, y);
      continue;
    }
    for (std::size_t first = 0; first < tile.rows; first += kPiece) {
      float delta[kPiece];
      const std::size_t count = std::min(kPiece, tile.rows - first);
      dequantize(kernels, sums + first, count, by_row ? scales + first : scales, by_row, x_scale,
                 bias == nullptr ? nullptr : bias + first, delta);
      for (std::size_t i = 0; i < count; ++i) y[first + i] += delta[i];
    }
  }
}

// The sums of one column group, [tile.tokens][tile.rows].
void sum_tile(const Kernels& kernels, const Tile& tile, const QuantizedRows& x, std::size_t group,
              std::int32_t* sums) {
  const Linear& linear = *tile.output->linear;
  const auto gemm = linear.recipe.weights == WeightKind::binary ? kernels.sign_gemm : kernels.ternary_gemm;
  const std::size_t row = group * x.rows + tile.first_token;
  gemm(linear.weights.data() + (group * linear.rows + tile.first_row) * linear.row_bytes(), tile.rows,
       x.columns, x.codes.data() + row * x.columns, x.sums.data() + row, tile.tokens, sums, tile.rows);
}

void run_tile(const Kernels& kernels, const Tile& tile, const QuantizedRows& x) {
  std::int32_t sums[kTaskTokens * kTaskRows];
  sum_tile(kernels, tile, x, 0, sums);
  write_tile(kernels, tile, x.scales.data(), sums, tile.rows);
}

// Column groups: their products are added in order, before the bias and before what y holds.
void run_grouped_tile(const Kernels& kernels, const Tile& tile, const QuantizedRows& x) {
  std::int32_t sums[kTaskTokens * kTaskRows];
  float totals[kTaskTokens * kTaskRows], part[kFewTokensRows];
  const LinearOutput& output = *tile.output;
  const Linear& linear = *output.linear;
  for (std::size_t group = 0; group < linear.recipe.column_groups; ++group) {
    sum_tile(kernels, tile, x, group, sums);
    for (std::size_t t = 0; t < tile.tokens; ++t) {
      const float factor = linear.scales[group] / x.scales.data()[group * x.rows + tile.first_token + t];
      float* total = totals + t * tile.rows;
      kernels.dequantize(sums + t * tile.rows, tile.rows, factor, nullptr, group == 0 ? total : part);
      if (group == 0) continue;
      for (std::size_t i = 0; i < tile.rows; ++i) total[i] += part[i];
    }
  }
  for (std::size_t t = 0; t < tile.tokens; ++t) {
    float* total = totals + t * tile.rows;
    float* y = output.y + (tile.first_token + t) * output.stride + tile.first_row;
    if (!linear.bias.empty())
      for (std::size_t i = 0; i < tile.rows; ++i) total[i] += linear.bias[tile.first_row + i];
    for (std::size_t i = 0; i < tile.rows; ++i) y[i] = output.add ? y[i] + total[i] : total[i];
  }
}

// Padded by a cache line, so that tokens of 1024 rows do not all fall in the same cache sets.
constexpr std::size_t sums_stride(std::size_t rows) {
  return (rows + 15) / 16 * 16 + 16;
}

// A kernel that works with tables, null where there is none that fits, and how many tokens a call takes.
struct TableKernel {
  decltype(Kernels::ternary_gemm_many) gemm = nullptr;
  std::size_t block = kTableTokens, fewest = 0;

  // How many of the tokens go through tables: whole blocks, and a rest that is large enough.
  std::size_t share(std::size_t tokens) const {
    if (gemm == nullptr) return 0;
    const std::size_t rest = tokens % block;
    return rest < fewest ? tokens - rest : tokens;
  }
  // A thread's share of the scratch: what the kernel wants, then its sums.
  std::size_t wanted_bytes(std::size_t rows) const {
    return (table_scratch_bytes(rows, block) + 63) / 64 * 64;
  }
  std::size_t scratch_bytes(std::size_t rows) const {
    return wanted_bytes(rows) + block * sums_stride(rows) * sizeof(std::int32_t);
  }
};

// The layers of a call are of one kind. Column groups do without, for their tiles would need more scratch.
TableKernel table_kernel(const Kernels& kernels, std::size_t tokens, std::size_t rows,
                         const LinearRecipe& recipe) {
  if (rows < kFewestTableRows || recipe.column_groups > 1) return {};
  if (recipe.weights == WeightKind::binary)
    return {kernels.sign_gemm_many, kTableTokens, kernels.fewest_signs};
  if (recipe.small_codes() && kernels.ternary_gemm_small != nullptr && tokens >= kernels.fewest_small)
    return {kernels.ternary_gemm_small, kSmallTokens, kernels.fewest_small};
  return {kernels.ternary_gemm_many, kTableTokens, kernels.fewest_many};
}

void run_table_tile(const Kernels& kernels, const TableKernel& table, const Tile& tile,
                    const QuantizedRows& x, std::uint8_t* scratch) {
  const std::size_t stride = sums_stride(tile.rows);
  auto* sums = reinterpret_cast<std::int32_t*>(scratch + table.wanted_bytes(tile.rows));
  const Linear& linear = *tile.output->linear;
  table.gemm(linear.weights.data() + tile.first_row * linear.row_bytes(), tile.rows, x.columns,
             x.codes.data() + tile.first_token * x.columns, tile.tokens, scratch, sums, stride);
  write_tile(kernels, tile, x.scales.data(), sums, stride);
}

}  // namespace

void dequantize(const Kernels& kernels, const std::int32_t* sums, std::size_t count, const float* scales,
                bool one_each, float x_scale, const float* bias, float* y) {
  if (!one_each) return kernels.dequantize(sums, count, scales[0] / x_scale, bias, y);
  for (std::size_t i = 0; i < count; ++i) y[i] = static_cast<float>(sums[i]) * (scales[i] / x_scale);
  if (bias != nullptr)
    for (std::size_t i = 0; i < count; ++i) y[i] += bias[i];
}

void run_linears(const Kernels& kernels, ThreadPool& pool, QuantizedRows& x, std::size_t tokens,
                 const std::vector<LinearOutput>& outputs) {
  std::size_t rows = 0;
  for (const LinearOutput& output : outputs) rows += output.linear->rows;
  const TableKernel table = table_kernel(kernels, tokens, rows, outputs.front().linear->recipe);
  const std::size_t by_table = table.share(tokens);
  Grid tables{outputs, 0, by_table, kTableRows, table.block};
  const Grid rest{outputs, by_table, tokens - by_table, tokens <= kFewTokens ? kFewTokensRows : kTaskRows,
                  kTaskTokens};
  while (tables.tile_rows > kFewestTableRows && tables.size() < pool.threads()) tables.tile_rows /= 2;
  const std::size_t scratch_bytes = table.scratch_bytes(tables.tile_rows);
  if (by_table > 0) x.scratch.reserve(pool.threads() * scratch_bytes);
  const std::size_t table_tiles = tables.size();
  pool.run(table_tiles + rest.size(), [&](std::size_t task, std::size_t thread) {
    const Tile tile = task < table_tiles ? tables.tile(task) : rest.tile(task - table_tiles);
    const QuantizedRows& input = tile.output->x == nullptr ? x : *tile.output->x;
    if (task < table_tiles)
      run_table_tile(kernels, table, tile, input, x.scratch.data() + thread * scratch_bytes);
    else if (tile.output->linear->recipe.column_groups > 1)
      run_grouped_tile(kernels, tile, input);
    else
      run_tile(kernels, tile, input);
  });
}

}  // namespace bitnet
