// A model's weights as the forward pass reads them. Embedding and head stay where the caller has them
// (usually a memory-mapped file) and must outlive the model.
#pragma once

#include <cstdint>
#include <vector>

#include "linear.h"

namespace bitnet {

// A full-precision matrix, bfloat16 bits or float32; exactly one pointer is set.
struct Table {
  const std::uint16_t* bf16 = nullptr;
  const float* f32 = nullptr;
};

struct Layer {
  // empty where the model has no such norm
  std::vector<float> input_norm, attention_sub_norm, post_attention_norm, feed_forward_sub_norm;
  Linear query, key, value, output, gate, up, down;
};

struct Weights {
  Table embedding;  // [vocab_size][hidden_size]
  Table head;       // the same shape; the embedding itself when tied
  std::vector<float> final_norm;
  std::vector<float> rope_cos, rope_sin;  // [max_positions][head_dim / 2]
  std::vector<Layer> layers;
};

}  // namespace bitnet
