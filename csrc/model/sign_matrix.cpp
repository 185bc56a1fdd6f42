#include "sign_matrix.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "bit_transpose.h"

namespace bitnet {
namespace {

// Rows of a task: 1280 rows' sums (240 KB) stay in L2, and building tables costs little from a hundred on.
constexpr std::size_t kMostTaskRows = 1280, kFewestTaskRows = 128;
// Rows of a call without tables: 20 KB at 2560 columns, which stay in L1 over the tokens.
constexpr std::size_t kDirectRows = 64;

// 128 columns of a row, low bit first, to a block of kernels.h: bit f of byte j is column 16 f + j.
void to_block(const std::uint8_t* bits, std::uint8_t* block) {
  for (std::size_t half = 0; half < 2; ++half) {
    std::uint64_t columns = 0;  // byte f holds columns 16 f + 8 half and the seven after it
    for (std::size_t f = 0; f < 8; ++f) columns |= std::uint64_t{bits[2 * f + half]} << (8 * f);
    const std::uint64_t fields = transpose_bits(columns);
    for (std::size_t i = 0; i < 8; ++i) block[8 * half + i] = static_cast<std::uint8_t>(fields >> (8 * i));
  }
}

// One token to `padded` codes and their sum; returns the lowest code.
int copy_codes(const std::int8_t* x, std::size_t columns, std::size_t padded, std::int8_t* codes,
               std::int32_t* sum) {
  std::memcpy(codes, x, columns);
  std::memset(codes + columns, 0, padded - columns);
  std::int32_t total = 0;
  std::int8_t lowest = 0;
  for (std::size_t k = 0; k < columns; ++k) {
    total += x[k];
    lowest = std::min(lowest, x[k]);
  }
  *sum = total;
  return lowest;
}

}  // namespace

SignMatrix::SignMatrix(const BitMatrix& matrix, ThreadPool& pool)
    : rows_(matrix.rows()),
      columns_(matrix.columns()),
      weights_(matrix.rows() * padded_columns(matrix.columns()) / 8) {
  const std::size_t words = matrix.words(), row_bytes = padded_columns(columns_) / 8;
  Buffer<std::uint32_t> scratch(pool.threads() * words);
  pool.run((rows_ + kGroupRows - 1) / kGroupRows, [&](std::size_t task, std::size_t thread) {
    std::uint32_t* row_words = scratch.data() + thread * words;
    for (std::size_t row = task * kGroupRows; row < std::min((task + 1) * kGroupRows, rows_); ++row) {
      matrix.read_row(row, row_words);
      const auto* bits = reinterpret_cast<const std::uint8_t*>(row_words);
      for (std::size_t at = 0; at < row_bytes; at += kSignBlockBytes)
        to_block(bits + at, weights_.data() + row * row_bytes + at);
    }
  });
}

void SignMatrix::multiply(const Kernels& kernels, ThreadPool& pool, BitScratch& scratch, const std::int8_t* x,
                          std::size_t tokens, std::int32_t* y) const {
  const std::size_t padded = padded_columns(columns_), row_bytes = padded / 8;
  const std::size_t blocks = (tokens + kTableTokens - 1) / kTableTokens;
  std::size_t task_rows = kMostTaskRows;
  const auto row_tasks = [&] { return (rows_ + task_rows - 1) / task_rows; };
  while (task_rows > kFewestTaskRows && row_tasks() * blocks < pool.threads()) task_rows /= 2;

  const std::size_t table_bytes = (table_scratch_bytes(task_rows) + 63) / 64 * 64;
  std::uint8_t* tables = scratch.bytes.reserve(pool.threads() * table_bytes + tokens * padded);
  auto* codes = reinterpret_cast<std::int8_t*>(tables + pool.threads() * table_bytes);
  std::vector<std::int32_t> sums(tokens);
  std::vector<std::uint8_t> by_table(blocks);
  pool.run(blocks, [&](std::size_t block, std::size_t) {
    const std::size_t first = block * kTableTokens, end = std::min(first + kTableTokens, tokens);
    int lowest = 0;
    for (std::size_t t = first; t < end; ++t)
      lowest = std::min(lowest, copy_codes(x + t * columns_, columns_, padded, codes + t * padded, &sums[t]));
    by_table[block] = kernels.sign_gemm_many != nullptr && rows_ >= kFewestTaskRows &&
                      end - first >= kernels.fewest_signs && lowest > -128;
  });
  pool.run(row_tasks() * blocks, [&](std::size_t task, std::size_t thread) {
    const std::size_t block = task % blocks, first = block * kTableTokens;
    const std::size_t count = std::min(kTableTokens, tokens - first);
    const std::size_t begin = task / blocks * task_rows, end = std::min(begin + task_rows, rows_);
    const std::size_t step = by_table[block] ? task_rows : kDirectRows;
    for (std::size_t row = begin; row < end; row += step) {
      const std::uint8_t* weights = weights_.data() + row * row_bytes;
      std::int32_t* to = y + first * rows_ + row;
      const std::size_t rows = std::min(step, end - row);
      if (by_table[block])
        kernels.sign_gemm_many(weights, rows, padded, codes + first * padded, count,
                               tables + thread * table_bytes, to, rows_);
      else
        kernels.sign_gemm(weights, rows, padded, codes + first * padded, &sums[first], count, to, rows_);
    }
  });
}

}  // namespace bitnet
