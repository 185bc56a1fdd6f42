#include "transformer.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "feed_forward.h"

namespace bitnet {
namespace {

// Tokens that run through the layers together. Longer prompts go in several rounds, which bounds the
// workspace (at 2B4T's widths 512 rows are 60 MB) and changes no result.
constexpr std::size_t kRoundRows = 512;

}  // namespace

Transformer::Transformer(const Config& config, Weights weights, std::size_t threads, const Kernels& kernels)
    : config_(config), kernels_(kernels), weights_(std::move(weights)), pool_(threads) {
  if (config.head_type == HeadType::shortlist)
    shortlist_ = std::make_unique<Shortlist>(config_, weights_.head, pool_);
}

Profile Transformer::profile() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return profile_;
}

LiveShares Transformer::live_shares() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return live_shares_;
}

void Transformer::check(const std::vector<Sequence>& batch) const {
  std::vector<const KvCache*> seen;
  for (const Sequence& sequence : batch) {
    const KvCache& cache = *sequence.cache;
    if (sequence.count == 0) throw std::invalid_argument("a sequence without ids; pass at least one token");
    if (!cache.fits(config_)) throw std::invalid_argument("a cache that another model made");
    if (std::find(seen.begin(), seen.end(), &cache) != seen.end())
      throw std::invalid_argument("the same cache twice in one batch");
    seen.push_back(&cache);
    if (sequence.count > cache.capacity() - cache.length())
      throw std::invalid_argument(std::to_string(sequence.count) +
                                  " new tokens do not fit: the cache holds " +
                                  std::to_string(cache.length()) + " of " + std::to_string(cache.capacity()));
    for (std::size_t i = 0; i < sequence.count; ++i)
      if (sequence.ids[i] < 0 || static_cast<std::size_t>(sequence.ids[i]) >= config_.vocab_size)
        throw std::invalid_argument("token id " + std::to_string(sequence.ids[i]) + " is outside 0.." +
                                    std::to_string(config_.vocab_size - 1));
  }
}

void Transformer::forward(const std::vector<Sequence>& batch, bool all_logits, float* logits) {
  run(batch, all_logits ? Output::all_logits : Output::last_logits, logits);
}

void Transformer::hidden_states(const std::vector<Sequence>& batch, float* hidden) {
  run(batch, Output::hidden_states, hidden);
}

void Transformer::run(const std::vector<Sequence>& batch, Output output, float* out) {
  const std::size_t width = output == Output::hidden_states ? config_.hidden_size : config_.vocab_size;
  const std::lock_guard<std::mutex> lock(mutex_);
  check(batch);
  std::vector<Row> rows;
  std::vector<float*> outputs;  // where the row's result goes, null where nobody asked
  for (const Sequence& sequence : batch) {
    for (std::size_t i = 0; i < sequence.count; ++i) {
      const bool wanted = output != Output::last_logits || i + 1 == sequence.count;
      rows.push_back({sequence.cache, sequence.cache->length() + i, sequence.ids[i]});
      outputs.push_back(wanted ? out : nullptr);
      if (wanted) out += width;
    }
  }
  for (std::size_t first = 0; first < rows.size(); first += kRoundRows) {
    const auto from = static_cast<std::ptrdiff_t>(first);
    const auto to = static_cast<std::ptrdiff_t>(std::min(first + kRoundRows, rows.size()));
    run_chunk({rows.begin() + from, rows.begin() + to}, {outputs.begin() + from, outputs.begin() + to},
              output);
  }
  for (const Sequence& sequence : batch)
    sequence.cache->set_length(sequence.cache->length() + sequence.count);
}

void Transformer::run_chunk(const std::vector<Row>& rows, const std::vector<float*>& outputs, Output output) {
  const std::size_t width = config_.hidden_size;
  workspace_.reserve(config_, rows.size(), pool_.threads());
  float* hidden = hidden_.reserve(rows.size() * width);
  const AttentionPlan plan(config_, rows);
  Context context{config_, kernels_, pool_, workspace_, rows, plan, profile_, live_shares_};
  for (std::size_t row = 0; row < rows.size(); ++row)
    embed(weights_.embedding, rows[row].token, width, hidden + row * width);
  for (std::size_t layer = 0; layer < weights_.layers.size(); ++layer) {
    run_attention(context, weights_, layer, hidden);
    run_feed_forward(context, weights_.layers[layer], hidden);
  }
  if (output == Output::hidden_states) {
    for (std::size_t row = 0; row < rows.size(); ++row)
      kernels_.rms_norm(hidden + row * width, weights_.final_norm.data(), width, config_.rms_norm_eps,
                        outputs[row]);
    return;
  }
  // Wanted rows are packed at the front: a row never moves to a later place, so none is overwritten. Their
  // logits lie one behind the other, too.
  std::size_t count = 0;
  float* logits = nullptr;
  for (std::size_t row = 0; row < rows.size(); ++row) {
    if (outputs[row] == nullptr) continue;
    if (count == 0) logits = outputs[row];
    kernels_.rms_norm(hidden + row * width, weights_.final_norm.data(), width, config_.rms_norm_eps,
                      hidden + count * width);
    ++count;
  }
  if (count == 0) return;
  const Profile::Scope scope(profile_, Part::head);
  if (shortlist_ != nullptr && output == Output::last_logits)
    shortlist_->run(kernels_, pool_, weights_.head, hidden, count, logits);
  else
    run_full_head(config_, kernels_, pool_, weights_.head, hidden, count, logits);
}

}  // namespace bitnet
