// The whole forward pass over a ragged batch.
//
// A token's result is computed by the same operations in the same order whatever else is in the batch and
// however many threads run, so a batch gives exactly what each sequence gives alone.
#pragma once

#include <mutex>

#include "attention.h"
#include "head.h"

namespace bitnet {

struct Sequence {
  KvCache* cache;
  const std::int32_t* ids;
  std::size_t count;
};

// Thread-safe: one forward at a time, further callers wait.
class Transformer {
 public:
  Transformer(const Config& config, Weights weights, std::size_t threads, const Kernels& kernels);

  const Config& config() const { return config_; }
  const Kernels& kernels() const { return kernels_; }
  std::size_t threads() const { return pool_.threads(); }
  Profile profile() const;
  LiveShares live_shares() const;

  // Appends every sequence's ids to its cache. logits is float32, [sum of counts][vocab_size] with
  // all_logits and [sequences][vocab_size] (the last token's) without. With all_logits they are exact; a
  // model with a shortlist computes the last token's as head.h says.
  // Throws std::invalid_argument for an id out of range, an empty sequence, a full, foreign or repeated
  // cache; nothing is appended then.
  void forward(const std::vector<Sequence>& batch, bool all_logits, float* logits);

  // The same without the head: hidden is float32, [sum of counts][hidden_size], every token's final norm.
  void hidden_states(const std::vector<Sequence>& batch, float* hidden);

 private:
  enum class Output { hidden_states, all_logits, last_logits };

  void check(const std::vector<Sequence>& batch) const;
  void run(const std::vector<Sequence>& batch, Output output, float* out);
  void run_chunk(const std::vector<Row>& rows, const std::vector<float*>& outputs, Output output);

  Config config_;
  const Kernels& kernels_;
  Weights weights_;
  ThreadPool pool_;
  Workspace workspace_;
  Profile profile_;
  LiveShares live_shares_;
  Buffer<float> hidden_;
  std::unique_ptr<Shortlist> shortlist_;  // null where the full head always runs
  mutable std::mutex mutex_;
};

}  // namespace bitnet
