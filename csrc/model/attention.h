// The attention half of a block: norm, q/k/v, RoPE, cached grouped-query attention, sub-norm, output.
#pragma once

#include "config.h"
#include "kv_cache.h"
#include "weights.h"

namespace bitnet {

// One new token: which sequence's cache it extends, and where.
struct Row {
  KvCache* cache;
  std::size_t position;
  std::int32_t token;
};

struct Workspace {
  QuantizedRows quantized;
  Buffer<float> query, key, value, attended;  // [rows][heads * head_dim] and alike
  Buffer<float> gate, up;                     // [rows][intermediate_size]
  Buffer<float> normed;                       // [threads][widest row]

  void reserve(const Config& config, std::size_t rows, std::size_t threads);
};

// What one forward needs everywhere.
struct Context {
  const Config& config;
  const Kernels& kernels;
  ThreadPool& pool;
  Workspace& workspace;
  const std::vector<Row>& rows;
};

// normalise, then quantise, each row of x [rows][width] (row t at x + t * width).
void norm_and_quantize(Context& context, const float* x, const std::vector<float>& weight);

// hidden [rows][hidden_size] += attention(norm(hidden))
void run_attention(Context& context, const Weights& weights, std::size_t layer, float* hidden);

}  // namespace bitnet
