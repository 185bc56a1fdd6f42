#include "bit_matrix.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>

namespace bitnet {
namespace {

// One task: 128 rows of 2560 columns are 40 KB (80 ternary), which stay in L2 over the planes; 64 planes
// amortise taking a task and leave enough of them to balance.
constexpr std::size_t kTaskPlanes = 64;
constexpr std::size_t kTaskRows = 8 * kGroupRows;

std::int32_t popcount(std::uint32_t bits) {
  bits -= (bits >> 1) & 0x55555555u;
  bits = (bits & 0x33333333u) + ((bits >> 2) & 0x33333333u);
  return static_cast<std::int32_t>((((bits + (bits >> 4)) & 0x0f0f0f0fu) * 0x01010101u) >> 24);
}

// A row of bits as words (both low bit and low byte first); 0 beyond the last column.
void to_words(const std::uint8_t* bits, std::size_t columns, std::size_t words, std::uint32_t* out) {
  const std::size_t bytes = columns / 8, rest = columns % 8;
  auto* to = reinterpret_cast<std::uint8_t*>(out);
  std::memcpy(to, bits, bytes);
  std::memset(to + bytes, 0, words * sizeof(out[0]) - bytes);
  if (rest != 0) to[bytes] = static_cast<std::uint8_t>(bits[bytes] & ((1u << rest) - 1u));
}

// Tasks of 16 tokens: one is copied or packed in less than the threads' quarrel over it would take.
template <class Function>
void run_tokens(ThreadPool& pool, std::size_t tokens, Function f) {
  constexpr std::size_t kTogether = 16;
  pool.run((tokens + kTogether - 1) / kTogether, [&](std::size_t task, std::size_t) {
    for (std::size_t token = task * kTogether; token < std::min((task + 1) * kTogether, tokens); ++token)
      f(token);
  });
}

}  // namespace

bool pack_signs(const BinaryKernels& kernels, ThreadPool& pool, const float* x, std::size_t tokens,
                std::size_t columns, std::uint8_t* bits) {
  const std::size_t bytes = (columns + 7) / 8;
  std::atomic<bool> numbers{true};
  run_tokens(pool, tokens, [&](std::size_t token) {
    if (!kernels.pack_signs(x + token * columns, columns, bits + token * bytes)) numbers = false;
  });
  return numbers;
}

bool pack_planes(const BinaryKernels& kernels, ThreadPool& pool, const std::int8_t* codes, std::size_t tokens,
                 std::size_t columns, std::size_t planes, std::uint8_t* bits) {
  const std::size_t bytes = planes * ((columns + 7) / 8);
  std::atomic<bool> fit{true};
  run_tokens(pool, tokens, [&](std::size_t token) {
    if (!kernels.pack_planes(codes + token * columns, columns, planes, bits + token * bytes)) fit = false;
  });
  return fit;
}

BitMatrix::BitMatrix(std::size_t rows, std::size_t columns, bool ternary)
    : rows_(rows),
      columns_(columns),
      words_(padded_words(columns)),
      ternary_(ternary),
      weights_(padded_rows(rows) * words_ * (ternary ? 2 : 1)),
      nonzero_(padded_rows(rows)),
      minus_plus_(padded_rows(rows)) {}

BitMatrix BitMatrix::binary(const std::uint8_t* bits, std::size_t rows, std::size_t columns,
                            ThreadPool& pool) {
  BitMatrix matrix(rows, columns, false);
  const std::size_t words = matrix.words_, row_bytes = (columns + 7) / 8;
  Buffer<std::uint32_t> scratch(pool.threads() * words);
  pool.run(padded_rows(rows) / kGroupRows, [&](std::size_t group, std::size_t thread) {
    std::uint32_t* row_words = scratch.data() + thread * words;
    for (std::size_t lane = 0; lane < kGroupRows; ++lane) {
      const std::size_t row = group * kGroupRows + lane;
      if (row < rows)
        to_words(bits + row * row_bytes, columns, words, row_words);
      else
        std::fill_n(row_words, words, 0u);
      std::uint32_t* out = matrix.weights_.data() + group * words * kGroupRows + lane;
      std::int32_t ones = 0;
      for (std::size_t k = 0; k < words; ++k) {
        out[k * kGroupRows] = k % 2 == 0 ? row_words[k] ^ row_words[k + 1] : row_words[k];
        ones += popcount(row_words[k]);
      }
      matrix.nonzero_.data()[row] = row < rows ? static_cast<std::int32_t>(columns) : 0;
      matrix.minus_plus_.data()[row] = -ones;
    }
  });
  return matrix;
}

BitMatrix BitMatrix::ternary(const std::uint8_t* plus, const std::uint8_t* minus, std::size_t rows,
                             std::size_t columns, ThreadPool& pool) {
  BitMatrix matrix(rows, columns, true);
  const std::size_t words = matrix.words_, row_bytes = (columns + 7) / 8;
  std::atomic<bool> both{false};
  Buffer<std::uint32_t> scratch(pool.threads() * 2 * words);
  pool.run(padded_rows(rows) / kGroupRows, [&](std::size_t group, std::size_t thread) {
    std::uint32_t *p = scratch.data() + thread * 2 * words, *n = p + words;
    for (std::size_t lane = 0; lane < kGroupRows; ++lane) {
      const std::size_t row = group * kGroupRows + lane;
      if (row < rows) {
        to_words(plus + row * row_bytes, columns, words, p);
        to_words(minus + row * row_bytes, columns, words, n);
      } else {
        std::fill_n(p, words, 0u);
        std::fill_n(n, words, 0u);
      }
      std::uint32_t* out = matrix.weights_.data() + group * words * 2 * kGroupRows + lane;
      std::int32_t positive = 0, nonzero = 0;
      for (std::size_t k = 0; k < words; ++k) {
        if ((p[k] & n[k]) != 0) both = true;
        out[2 * k * kGroupRows] = p[k] | n[k];
        out[(2 * k + 1) * kGroupRows] = p[k];
        positive += popcount(p[k]);
        nonzero += popcount(p[k] | n[k]);
      }
      matrix.nonzero_.data()[row] = nonzero;
      matrix.minus_plus_.data()[row] = -positive;
    }
  });
  if (both) throw std::invalid_argument("a weight is set in plus and in minus");
  return matrix;
}

void BitMatrix::read_row(std::size_t row, std::uint32_t* words) const {
  const std::uint32_t* from = weights_.data() + row / kGroupRows * words_ * kGroupRows + row % kGroupRows;
  for (std::size_t k = 0; k < words_; k += 2) {
    words[k + 1] = from[(k + 1) * kGroupRows];
    words[k] = from[k * kGroupRows] ^ words[k + 1];
  }
}

void BitMatrix::multiply_signs(const BinaryKernels& kernels, ThreadPool& pool, BitScratch& scratch,
                               const std::uint8_t* x, std::size_t tokens, std::int32_t* y) const {
  const std::int32_t factor = -2;
  multiply(kernels, pool, scratch, x, tokens, 1, nonzero_.data(), &factor, y);
}

void BitMatrix::multiply_planes(const BinaryKernels& kernels, ThreadPool& pool, BitScratch& scratch,
                                const std::uint8_t* x, std::size_t tokens, std::size_t planes,
                                std::int32_t* y) const {
  std::int32_t factors[kMostPlanes];
  for (std::size_t j = 0; j < planes; ++j) factors[j] = -(1 << j);
  factors[planes - 1] = 1 << (planes - 1);
  multiply(kernels, pool, scratch, x, tokens, planes, minus_plus_.data(), factors, y);
}

void BitMatrix::multiply(const BinaryKernels& kernels, ThreadPool& pool, BitScratch& scratch,
                         const std::uint8_t* x, std::size_t tokens, std::size_t planes,
                         const std::int32_t* base, const std::int32_t* factors, std::int32_t* y) const {
  const std::size_t row_bytes = (columns_ + 7) / 8, lines = ternary_ ? 2 : 1;
  std::uint32_t* words = scratch.x.reserve(tokens * planes * words_);
  run_tokens(pool, tokens, [&](std::size_t token) {
    for (std::size_t i = token * planes; i < (token + 1) * planes; ++i) {
      std::uint32_t* out = words + i * words_;
      to_words(x + i * row_bytes, columns_, words_, out);
      for (std::size_t k = 0; !ternary_ && k < words_; k += 2) out[k] ^= out[k + 1];
    }
  });
  const auto gemm = ternary_ ? kernels.ternary_gemm : kernels.binary_gemm;
  const std::size_t task_tokens = kTaskPlanes / planes;
  const std::size_t token_tasks = (tokens + task_tokens - 1) / task_tokens;
  pool.run((rows_ + kTaskRows - 1) / kTaskRows * token_tasks, [&](std::size_t task, std::size_t) {
    const std::size_t row = task / token_tasks * kTaskRows, token = task % token_tasks * task_tokens;
    gemm({weights_.data() + row * words_ * lines, base + row, std::min(kTaskRows, rows_ - row), words_,
          words + token * planes * words_, std::min(task_tokens, tokens - token), planes, factors,
          y + token * rows_ + row, rows_});
  });
}

}  // namespace bitnet
