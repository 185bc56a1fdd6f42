// Embedding rows in, logits out: the two full-precision ends of the model.
#pragma once

#include "config.h"
#include "weights.h"

namespace bitnet {

// hidden [hidden_size] = the embedding of one token, widened to float32.
void embed(const Table& embedding, std::int32_t token, std::size_t hidden_size, float* hidden);

// logits [count][vocab_size] = normed [count][hidden_size] times the head's rows.
void run_head(const Config& config, const Kernels& kernels, ThreadPool& pool, const Table& head,
              const float* normed, std::size_t count, float* logits);

}  // namespace bitnet
