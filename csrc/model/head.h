// Embedding rows in, logits out: the two full-precision ends of the model.
//
// The head is as wide as all layers together are deep: 328 M weights in 2B4T, 657 MB a token in bfloat16. So
// a copy of it with 4 bits a weight (164 MB) names the rows that can matter, and only those are computed
// from the bfloat16 rows. See `Shortlist` for what that guarantees.
#pragma once

#include <memory>

#include "config.h"
#include "weights.h"

namespace bitnet {

// hidden [hidden_size] = the embedding of one token, widened to float32.
void embed(const Table& embedding, std::int32_t token, std::size_t hidden_size, float* hidden);

// A 4-bit copy of the head: row r is about scales[r] * (code - 8), codes 0..15. The step is the best one for
// normally distributed weights (0.335 standard deviations), or a ninth of the row's largest weight where that
// is more: so no weight is missed by over two steps, and the residual is spread over the columns.
//
// With w = w4 + e and x = x8 + d (x8: the int8 quantised input) the 4-bit logit w4 . x8 misses e . x + w4 .
// d. Rounding residuals are as good as independent of what they are multiplied with, so over n columns these
// products have standard deviations |e| |x| / sqrt(n) and |w4| |d| / sqrt(n). A row's margin is six times the
// sum of both. The rows with the best 4-bit logits, at least kExact, are computed exactly, and T is the
// kExact-th largest result. Every other row whose 4-bit logit + margin reaches T is computed exactly, too; so
// the kExact largest logits, their order and the greedy token are those of the full head, unless a row that
// matters leaves its margin. For residuals uniform over a step that has a probability below 2 exp(-6^2 / 2) =
// 3e-8 a row whatever x is (they are sub-Gaussian with their own variance). The other rows keep their 4-bit
// logits.
class Shortlist {
 public:
  static constexpr std::size_t kExact = 64;

  Shortlist(const Config& config, const Table& head, ThreadPool& pool);

  // logits [count][vocab_size] of normed [count][hidden_size].
  void run(const Kernels& kernels, ThreadPool& pool, const Table& head, const float* normed,
           std::size_t count, float* logits);

  // Rows computed exactly, and tokens, since construction: what the margin costs.
  std::size_t exact_rows() const { return exact_rows_; }
  std::size_t tokens() const { return tokens_; }

 private:
  void run_token_batch(const Kernels& kernels, ThreadPool& pool, const Table& head, const float* normed,
                       std::size_t count, float* logits);
  float exact_threshold(const Kernels& kernels, ThreadPool& pool, const Table& head, const float* x,
                        float* block_best, float* logits);

  std::size_t rows_, columns_;
  Buffer<std::uint8_t> codes_;                     // [rows][padded columns / 2], laid out as kernels.h says
  std::vector<float> scales_, residuals_, norms_;  // a row: step, |e|, |w4|
  QuantizedRows quantized_;
  Buffer<float> block_best_;       // [tokens][blocks], the largest 4-bit logit of each block
  std::vector<float> best_exact_;  // of one token, scratch
  std::vector<std::uint32_t> best_rows_;
  std::size_t exact_rows_ = 0, tokens_ = 0;
};

// The exact logits [count][vocab_size] of normed [count][hidden_size].
void run_full_head(const Config& config, const Kernels& kernels, ThreadPool& pool, const Table& head,
                   const float* normed, std::size_t count, float* logits);

}  // namespace bitnet
