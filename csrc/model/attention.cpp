#include "attention.h"

#include <algorithm>
#include <cmath>

#include "rotary.h"

namespace bitnet {
namespace {

// Positions of a segment: 256 KB of float16 keys and values of 128, long enough to stream, and 4,096
// positions of 5 key/value heads still make 40 tasks for one token.
constexpr std::size_t kSegment = 512;

// Query rows (tokens times heads) of a tile: widening a block costs about 3% of what 64 rows then do with it,
// and the tile's working set (150 KB at head_dim 128) stays in L2.
constexpr std::size_t kTileRows = 64;

// Up to so many new tokens, tiles alone are too few tasks. The partial results of 32 tokens of 2B4T take 3 MB
// at 4,096 positions.
constexpr std::size_t kSplitTokens = 32;

// RoPE on the new queries and keys, and the new keys and values into their caches. A task is all that one
// head's block of positions gets: their codes share words.
void rotate_and_store(Context& context, const Weights& weights, std::size_t layer) {
  const Config& config = context.config;
  Workspace& space = context.workspace;
  const std::size_t half = config.head_dim / 2, heads = config.kv_heads, group = config.heads / heads;
  context.pool.run(context.plan.runs.size() * heads, [&](std::size_t task, std::size_t thread) {
    const AttentionPlan::Run& run = context.plan.runs[task / heads];
    const std::size_t head = task % heads;
    for (std::size_t row = run.row; row < run.row + run.tokens; ++row) {
      const Row& token = context.rows[row];
      const float* cos = weights.rope_cos.data() + token.position * half;
      const float* sin = weights.rope_sin.data() + token.position * half;
      const std::size_t at = row * config.key_value_size() + head * config.head_dim;
      rotate(space.query.data() + at * group, group, config.head_dim, cos, sin);
      rotate(space.key.data() + at, 1, config.head_dim, cos, sin);
      token.cache->store(context.kernels, layer, head, token.position, space.key.data() + at,
                         space.value.data() + at, space.codes.data() + thread * 2 * config.head_dim);
    }
  });
}

// The part of a tile's attention that falls into one segment.
AttentionTile segment_shape(const Context& context, const AttentionPlan::Tile& tile, std::size_t segment) {
  const Config& config = context.config;
  const std::size_t keys = context.rows[tile.row].position + tile.tokens - segment * kSegment;
  return {tile.tokens,
          config.heads / config.kv_heads,
          config.head_dim,
          config.query_size(),
          keys,
          std::min(keys, kSegment),
          1.0f / std::sqrt(static_cast<float>(config.head_dim))};
}

// Attention of the queries in the workspace over the cache, this forward's keys included.
void attend(Context& context, std::size_t layer) {
  const Config& config = context.config;
  const AttentionPlan& plan = context.plan;
  Workspace& space = context.workspace;
  const std::size_t heads = config.kv_heads, head_width = config.query_size() / heads;
  const AttentionTile largest{plan.most_tokens, config.heads / heads, config.head_dim, 0, 0, 0, 0.0f};
  const std::size_t scratch_size = largest.scratch_size(), partial_size = largest.partial_size();
  space.scratch.reserve(context.pool.threads() * scratch_size);

  const auto run_segment = [&](const AttentionPlan::Tile& tile, std::size_t head, std::size_t segment,
                               std::size_t thread, float* partial) {
    context.rows[tile.row].cache->attend(
        context.kernels, layer, head, segment * kSegment, segment_shape(context, tile, segment),
        space.query.data() + tile.row * config.query_size() + head * head_width,
        space.scratch.data() + thread * scratch_size, partial);
  };
  const auto finish = [&](const AttentionPlan::Tile& tile, std::size_t head, const float* partial) {
    context.kernels.attention_finish(
        segment_shape(context, tile, 0), partial,
        space.attended.data() + tile.row * config.query_size() + head * head_width);
  };

  if (plan.by_segment) {
    float* partials = space.partial.reserve(plan.tile_of_segment.size() * heads * partial_size);
    context.pool.run(plan.tile_of_segment.size() * heads, [&](std::size_t task, std::size_t thread) {
      const std::size_t index = task / heads;
      const AttentionPlan::Tile& tile = plan.tiles[plan.tile_of_segment[index]];
      run_segment(tile, task % heads, index - tile.first_segment, thread, partials + task * partial_size);
    });
    context.pool.run(plan.tiles.size() * heads, [&](std::size_t task, std::size_t) {
      const AttentionPlan::Tile& tile = plan.tiles[task / heads];
      float* first = partials + (tile.first_segment * heads + task % heads) * partial_size;
      for (std::size_t segment = 1; segment < tile.segments; ++segment)
        context.kernels.attention_merge(segment_shape(context, tile, segment),
                                        first + segment * heads * partial_size, first);
      finish(tile, task % heads, first);
    });
    return;
  }
  float* partials = space.partial.reserve(context.pool.threads() * 2 * partial_size);
  context.pool.run(plan.tiles.size() * heads, [&](std::size_t task, std::size_t thread) {
    // The last tiles see most: begin with them, so that the short ones level the threads at the end.
    const AttentionPlan::Tile& tile = plan.tiles[plan.tiles.size() - 1 - task / heads];
    float *partial = partials + thread * 2 * partial_size, *later = partial + partial_size;
    run_segment(tile, task % heads, 0, thread, partial);
    for (std::size_t segment = 1; segment < tile.segments; ++segment) {
      run_segment(tile, task % heads, segment, thread, later);
      context.kernels.attention_merge(segment_shape(context, tile, segment), later, partial);
    }
    finish(tile, task % heads, partial);
  });
}

}  // namespace

AttentionPlan::AttentionPlan(const Config& config, const std::vector<Row>& rows)
    : by_segment(rows.size() <= kSplitTokens) {
  // A power of two that divides a block, so that tiles cut at its multiples never straddle blocks.
  std::size_t limit = kKeyBlock;
  while (limit > 1 && limit * (config.heads / config.kv_heads) > kTileRows) limit /= 2;
  for (std::size_t row = 0; row < rows.size();) {
    const std::size_t first = row, position = rows[first].position;
    while (++row < rows.size() && rows[row].cache == rows[first].cache && rows[row].position % limit != 0) {
    }
    const std::size_t tokens = row - first, segments = (position + tokens + kSegment - 1) / kSegment;
    const std::size_t tile = tiles.size(), first_segment = tile_of_segment.size();
    tiles.push_back({first, tokens, segments, first_segment});
    if (first != 0 && rows[first - 1].cache == rows[first].cache && position % kKeyBlock != 0)
      runs.back().tokens += tokens;
    else
      runs.push_back({first, tokens});
    tile_of_segment.insert(tile_of_segment.end(), segments, tile);
    most_tokens = std::max(most_tokens, tokens);
  }
}

void Workspace::reserve(const Config& config, std::size_t rows, std::size_t threads) {
  const std::size_t widest = std::max({config.hidden_size, config.intermediate_size, config.query_size()});
  query.reserve(rows * config.query_size());
  attended.reserve(rows * config.query_size());
  key.reserve(rows * config.key_value_size());
  value.reserve(rows * config.key_value_size());
  gate.reserve(rows * config.intermediate_size);
  up.reserve(rows * config.intermediate_size);
  row_scratch.reserve(threads * 3 * widest);
  codes.reserve(threads * 2 * config.head_dim);
}

void quantize_inputs(Context& context, const float* x, const std::vector<float>& norm,
                     std::vector<LinearOutput>& outputs) {
  Workspace& space = context.workspace;
  const Linear& first = *outputs.front().linear;
  const std::size_t width = first.columns, rows = context.rows.size();
  const std::size_t inputs = first.recipe.norm == NormKind::none ? 1 : outputs.size();
  for (std::size_t i = 0; i < inputs; ++i)
    space.quantized[i].reserve(rows, padded_columns(first.group_columns()), first.recipe.column_groups);
  for (std::size_t i = 0; i < outputs.size(); ++i) outputs[i].x = &space.quantized[i < inputs ? i : 0];
  const std::size_t scratch = space.row_scratch.size() / context.pool.threads();
  context.pool.run(rows, [&](std::size_t row, std::size_t thread) {
    float *normed = space.row_scratch.data() + thread * scratch, *free = normed + width;
    const float* values = x + row * width;
    if (!norm.empty()) {
      context.kernels.rms_norm(values, norm.data(), width, context.config.rms_norm_eps, normed);
      values = normed;
    }
    for (std::size_t i = 0; i < inputs; ++i) {
      const Linear& linear = *outputs[i].linear;
      space.quantized[i].quantize(context.kernels, linear.recipe, linear.norm_weight.data(), values, width,
                                  row, free);
    }
  });
}

void run_attention(Context& context, const Weights& weights, std::size_t layer, float* hidden) {
  const Config& config = context.config;
  const Layer& block = weights.layers[layer];
  Workspace& space = context.workspace;
  const std::size_t kv_size = config.key_value_size();
  {
    const Profile::Scope scope(context.profile, Part::projections);
    std::vector<LinearOutput> outputs{{&block.query, space.query.data(), config.query_size()},
                                      {&block.key, space.key.data(), kv_size},
                                      {&block.value, space.value.data(), kv_size}};
    quantize_inputs(context, hidden, block.input_norm, outputs);
    context.run(outputs);
  }
  {
    const Profile::Scope scope(context.profile, Part::attention);
    rotate_and_store(context, weights, layer);
    attend(context, layer);
  }
  const Profile::Scope scope(context.profile, Part::output);
  std::vector<LinearOutput> output{{&block.output, hidden, config.hidden_size, true}};
  quantize_inputs(context, space.attended.data(), block.attention_sub_norm, output);
  context.run(output);
}

}  // namespace bitnet
