#include "attention.h"

#include <algorithm>
#include <cmath>

namespace bitnet {
namespace {

// Half-split rotation: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) for the two halves of each head.
void rotate(float* heads, std::size_t count, std::size_t head_dim, const float* cos, const float* sin) {
  const std::size_t half = head_dim / 2;
  for (std::size_t head = 0; head < count; ++head, heads += head_dim) {
    for (std::size_t i = 0; i < half; ++i) {
      const float first = heads[i], second = heads[half + i];
      heads[i] = first * cos[i] - second * sin[i];
      heads[half + i] = second * cos[i] + first * sin[i];
    }
  }
}

}  // namespace

void Workspace::reserve(const Config& config, std::size_t rows, std::size_t threads) {
  const std::size_t widest = std::max({config.hidden_size, config.intermediate_size, config.query_size()});
  quantized.reserve(rows, padded_columns(widest));
  query.reserve(rows * config.query_size());
  attended.reserve(rows * config.query_size());
  key.reserve(rows * config.key_value_size());
  value.reserve(rows * config.key_value_size());
  gate.reserve(rows * config.intermediate_size);
  up.reserve(rows * config.intermediate_size);
  normed.reserve(threads * widest);
}

void norm_and_quantize(Context& context, const float* x, const std::vector<float>& weight) {
  Workspace& space = context.workspace;
  const std::size_t width = weight.size(), rows = context.rows.size();
  space.quantized.reserve(rows, padded_columns(width));
  const std::size_t scratch = space.normed.size() / context.pool.threads();
  context.pool.run(rows, [&](std::size_t row, std::size_t thread) {
    float* normed = space.normed.data() + thread * scratch;
    context.kernels.rms_norm(x + row * width, weight.data(), width, context.config.rms_norm_eps, normed);
    space.quantized.quantize(context.kernels, normed, width, row);
  });
}

void run_attention(Context& context, const Weights& weights, std::size_t layer, float* hidden) {
  const Config& config = context.config;
  const Layer& block = weights.layers[layer];
  Workspace& space = context.workspace;
  const std::size_t rows = context.rows.size(), query_size = config.query_size(),
                    kv_size = config.key_value_size();
  const std::size_t half = config.head_dim / 2;

  norm_and_quantize(context, hidden, block.input_norm);
  run_linears(context.kernels, context.pool, space.quantized, rows,
              {{&block.query, space.query.data(), query_size},
               {&block.key, space.key.data(), kv_size},
               {&block.value, space.value.data(), kv_size}});

  context.pool.run(rows, [&](std::size_t row, std::size_t) {
    const Row& token = context.rows[row];
    const float* cos = weights.rope_cos.data() + token.position * half;
    const float* sin = weights.rope_sin.data() + token.position * half;
    rotate(space.query.data() + row * query_size, config.heads, config.head_dim, cos, sin);
    rotate(space.key.data() + row * kv_size, config.kv_heads, config.head_dim, cos, sin);
    token.cache->store(context.kernels, layer, token.position, space.key.data() + row * kv_size,
                       space.value.data() + row * kv_size);
  });

  const float scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim));
  context.pool.run(rows * config.heads, [&](std::size_t task, std::size_t) {
    const std::size_t row = task / config.heads, head = task % config.heads;
    const std::size_t at = row * query_size + head * config.head_dim;
    const Row& token = context.rows[row];
    token.cache->attend(context.kernels, layer, head / (config.heads / config.kv_heads),
                        space.query.data() + at, token.position + 1, scale, space.attended.data() + at);
  });

  norm_and_quantize(context, space.attended.data(), block.attention_sub_norm);
  run_linears(context.kernels, context.pool, space.quantized, rows,
              {{&block.output, hidden, config.hidden_size, true}});
}

}  // namespace bitnet
