#include "head.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>

namespace bitnet {
namespace {

// 64 rows of 2560 bfloat16 are 328 KB: a task long enough to stream, short enough to balance.
constexpr std::size_t kTaskRows = 64;
// Rows a block of the shortlist: 2B4T has 501 blocks, several times kExact, so the kExact-th best block is
// nearly as good a threshold as the kExact-th best row, and costs no sorting of 128,256 numbers.
constexpr std::size_t kBlockRows = 256;
constexpr std::size_t kBatchTokens = 32;  // tokens that share one reading of the 4-bit rows
constexpr float kStep = 0.335f;           // of a 16-level quantiser, in standard deviations
constexpr float kLargestInSteps = 9.0f;
constexpr float kDeviations = 6.0f;

float load(const Table& table, std::size_t index) {
  if (table.f32 != nullptr) return table.f32[index];
  const std::uint32_t bits = static_cast<std::uint32_t>(table.bf16[index]) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

void widen_row(const Table& table, std::size_t row, std::size_t columns, float* out) {
  for (std::size_t i = 0; i < columns; ++i) out[i] = load(table, row * columns + i);
}

float exact_logit(const Kernels& kernels, const Table& head, std::size_t row, const float* x,
                  std::size_t width) {
  return head.f32 != nullptr ? kernels.dot_f32(x, head.f32 + row * width, width)
                             : kernels.dot_bf16(x, head.bf16 + row * width, width);
}

double squared_norm(const float* x, std::size_t n) {
  double sum = 0.0;
  for (std::size_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  return sum;
}

}  // namespace

void embed(const Table& embedding, std::int32_t token, std::size_t hidden_size, float* hidden) {
  widen_row(embedding, static_cast<std::size_t>(token), hidden_size, hidden);
}

void run_full_head(const Config& config, const Kernels& kernels, ThreadPool& pool, const Table& head,
                   const float* normed, std::size_t count, float* logits) {
  const std::size_t width = config.hidden_size;
  pool.run((config.vocab_size + kTaskRows - 1) / kTaskRows, [&](std::size_t task, std::size_t) {
    const std::size_t last = std::min((task + 1) * kTaskRows, config.vocab_size);
    for (std::size_t row = task * kTaskRows; row < last; ++row)
      for (std::size_t t = 0; t < count; ++t)
        logits[t * config.vocab_size + row] = exact_logit(kernels, head, row, normed + t * width, width);
  });
}

Shortlist::Shortlist(const Config& config, const Table& head, ThreadPool& pool)
    : rows_(config.vocab_size),
      columns_(config.hidden_size),
      codes_(config.vocab_size * padded_columns(config.hidden_size) / 2),
      scales_(rows_),
      residuals_(rows_),
      norms_(rows_) {
  const std::size_t padded = padded_columns(columns_);
  std::vector<float> rows(pool.threads() * padded, 0.0f);
  std::vector<std::uint8_t> codes(pool.threads() * padded);
  pool.run((rows_ + kBlockRows - 1) / kBlockRows, [&](std::size_t block, std::size_t thread) {
    float* const row = rows.data() + thread * padded;
    std::uint8_t* const code = codes.data() + thread * padded;
    const std::size_t last = std::min((block + 1) * kBlockRows, rows_);
    for (std::size_t r = block * kBlockRows; r < last; ++r) {
      widen_row(head, r, columns_, row);
      float largest = 0.0f;
      for (std::size_t i = 0; i < columns_; ++i) largest = std::max(largest, std::fabs(row[i]));
      const float best =
          kStep * static_cast<float>(std::sqrt(squared_norm(row, columns_) / static_cast<double>(columns_)));
      const float step = std::max(best, largest / kLargestInSteps);
      const float inverse = step > 0.0f ? 1.0f / step : 0.0f;
      float residual = 0.0f, norm = 0.0f;
      for (std::size_t i = 0; i < padded; ++i) {
        const float level = std::min(std::max(std::nearbyint(row[i] * inverse), -8.0f), 7.0f);
        code[i] = static_cast<std::uint8_t>(static_cast<int>(level) + 8);
        const float miss = row[i] - level * step;
        residual += miss * miss;
        norm += level * level;
      }
      scales_[r] = step;
      residuals_[r] = std::sqrt(residual);
      norms_[r] = step * std::sqrt(norm);
      std::uint8_t* out = codes_.data() + r * padded / 2;
      for (std::size_t from = 0; from < padded; from += 2 * kBlockBytes, out += kBlockBytes)
        for (std::size_t j = 0; j < kBlockBytes; ++j)
          out[j] = static_cast<std::uint8_t>(code[from + j] | (code[from + kBlockBytes + j] << 4));
    }
  });
}

void Shortlist::run(const Kernels& kernels, ThreadPool& pool, const Table& head, const float* normed,
                    std::size_t count, float* logits) {
  for (std::size_t t = 0; t < count; t += kBatchTokens)
    run_token_batch(kernels, pool, head, normed + t * columns_, std::min(kBatchTokens, count - t),
                    logits + t * rows_);
}

void Shortlist::run_token_batch(const Kernels& kernels, ThreadPool& pool, const Table& head,
                                const float* normed, std::size_t count, float* logits) {
  const std::size_t padded = padded_columns(columns_), blocks = (rows_ + kBlockRows - 1) / kBlockRows;
  quantized_.reserve(count, padded);
  block_best_.reserve(count * blocks);
  // A row's margin is residuals_[r] * by_residual + norms_[r] * by_norm.
  float by_residual[kBatchTokens], by_norm[kBatchTokens];
  for (std::size_t t = 0; t < count; ++t) {
    const float* x = normed + t * columns_;
    quantized_.quantize(kernels, x, columns_, t);
    const float inverse = 1.0f / quantized_.scales.data()[t];
    double missed = 0.0;
    for (std::size_t i = 0; i < columns_; ++i) {
      const float miss = x[i] - static_cast<float>(quantized_.codes.data()[t * padded + i]) * inverse;
      missed += static_cast<double>(miss) * miss;
    }
    const double unit = kDeviations / std::sqrt(static_cast<double>(columns_));
    by_residual[t] = static_cast<float>(unit * std::sqrt(squared_norm(x, columns_)));
    by_norm[t] = static_cast<float>(unit * std::sqrt(missed));
  }

  pool.run(blocks, [&](std::size_t block, std::size_t) {
    const std::size_t first = block * kBlockRows, n = std::min(kBlockRows, rows_ - first);
    std::int32_t sums[kBatchTokens * kBlockRows];
    kernels.nibble_gemm(codes_.data() + first * padded / 2, n, padded, quantized_.codes.data(),
                        quantized_.sums.data(), count, sums, kBlockRows);
    for (std::size_t t = 0; t < count; ++t) {
      const float inverse = 1.0f / quantized_.scales.data()[t];
      float* out = logits + t * rows_ + first;
      float best = -std::numeric_limits<float>::infinity();
      for (std::size_t r = 0; r < n; ++r) {
        out[r] = static_cast<float>(sums[t * kBlockRows + r]) * (scales_[first + r] * inverse);
        best = out[r] > best ? out[r] : best;
      }
      block_best_.data()[t * blocks + block] = best;
    }
  });

  float threshold[kBatchTokens];
  for (std::size_t t = 0; t < count; ++t)
    threshold[t] = exact_threshold(kernels, pool, head, normed + t * columns_,
                                   block_best_.data() + t * blocks, logits + t * rows_);
  std::atomic<std::size_t> exact{0};
  pool.run(blocks, [&](std::size_t block, std::size_t) {
    const std::size_t first = block * kBlockRows, last = std::min(first + kBlockRows, rows_);
    std::size_t found = 0;
    for (std::size_t t = 0; t < count; ++t) {
      float* out = logits + t * rows_;
      for (std::size_t r = first; r < last; ++r) {
        const float margin = residuals_[r] * by_residual[t] + norms_[r] * by_norm[t];
        if (out[r] + margin < threshold[t]) continue;  // a NaN is never less: it is computed exactly, too
        out[r] = exact_logit(kernels, head, r, normed + t * columns_, columns_);
        ++found;
      }
    }
    exact.fetch_add(found, std::memory_order_relaxed);
  });
  exact_rows_ += exact.load();
  tokens_ += count;
}

// Computes the rows of one token exactly that reach the kExact-th best block's best 4-bit logit, and returns
// the kExact-th largest of them: a value that at least kExact rows reach.
float Shortlist::exact_threshold(const Kernels& kernels, ThreadPool& pool, const Table& head, const float* x,
                                 float* block_best, float* logits) {
  const std::size_t blocks = (rows_ + kBlockRows - 1) / kBlockRows;
  if (blocks < kExact) return -std::numeric_limits<float>::infinity();
  best_exact_.assign(block_best, block_best + blocks);
  std::nth_element(best_exact_.begin(), best_exact_.begin() + (kExact - 1), best_exact_.end(),
                   std::greater<float>());
  const float reach = best_exact_[kExact - 1];
  best_rows_.clear();
  for (std::size_t block = 0; block < blocks; ++block) {
    if (block_best[block] < reach) continue;
    for (std::size_t r = block * kBlockRows; r < std::min((block + 1) * kBlockRows, rows_); ++r)
      if (logits[r] >= reach) best_rows_.push_back(static_cast<std::uint32_t>(r));
  }
  if (best_rows_.size() < kExact) return -std::numeric_limits<float>::infinity();  // NaN logits: all exact
  best_exact_.resize(best_rows_.size());
  constexpr std::size_t kTask = 16;
  pool.run((best_rows_.size() + kTask - 1) / kTask, [&](std::size_t task, std::size_t) {
    for (std::size_t i = task * kTask; i < std::min((task + 1) * kTask, best_rows_.size()); ++i)
      best_exact_[i] = logits[best_rows_[i]] = exact_logit(kernels, head, best_rows_[i], x, columns_);
  });
  std::nth_element(best_exact_.begin(), best_exact_.begin() + (kExact - 1), best_exact_.end(),
                   std::greater<float>());
  return best_exact_[kExact - 1];
}

}  // namespace bitnet
