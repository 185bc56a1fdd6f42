// The attention half of a block: norm, q/k/v, RoPE, cached grouped-query attention, sub-norm, output; either
// norm may be missing.
#pragma once

#include <vector>

#include "config.h"
#include "kv_cache.h"
#include "profile.h"
#include "weights.h"

namespace bitnet {

// One new token: which sequence's cache it extends, and where.
struct Row {
  KvCache* cache;
  std::size_t position;
  std::int32_t token;
};

// How the rows of a forward are shared out for attention. A row's result is defined without it: positions
// fall into segments of kSegment, each attended to from scratch, and the segments' partial results are merged
// in order. So a long context can be split over threads, and no bit depends on whether it is.
struct AttentionPlan {
  // Rows row..row+tokens-1: consecutive tokens of one sequence within one block of positions.
  struct Tile {
    std::size_t row, tokens;
    std::size_t segments;       // that the last token sees, the last one perhaps partly
    std::size_t first_segment;  // among the segments of all tiles
  };
  // The tokens of all tiles that fall into one block of one sequence.
  struct Run {
    std::size_t row, tokens;
  };
  std::vector<Run> runs;
  std::vector<Tile> tiles;
  std::vector<std::size_t> tile_of_segment;
  std::size_t most_tokens = 0;  // of a tile
  bool by_segment;              // a task is a segment of a tile, not a whole tile

  AttentionPlan(const Config& config, const std::vector<Row>& rows);
};

// How much of the feed-forward layers tokens in small batches needed, since the model was loaded.
struct LiveShares {
  std::size_t tokens = 0;        // tokens times layers
  std::size_t up_rows = 0;       // neurons whose gate is positive
  std::size_t down_columns = 0;  // int8 inputs of down that are not 0
};

// What of one token's feed-forward layer is not dead: rows of up, or columns of down and their int8 inputs.
struct LiveList {
  std::vector<std::uint32_t> indices;
  std::vector<std::int8_t> values;
};

struct Workspace {
  QuantizedRows quantized[3];                 // the input of a call's layers, or one each
  Buffer<float> query, key, value, attended;  // [rows][heads * head_dim] and alike
  Buffer<float> gate, up;                     // [rows][intermediate_size]
  std::vector<LiveList> live;                 // a token
  Buffer<float> row_scratch;                  // [threads][3 * widest row], of quantize_inputs
  Buffer<float> scratch, partial;             // of the attention kernels
  Buffer<std::uint8_t> codes;                 // [threads][2 * head_dim], of KvCache::store
  Buffer<std::int32_t> column_sums;           // [rows of down, whole chunks]

  void reserve(const Config& config, std::size_t rows, std::size_t threads);
};

// What one forward needs everywhere.
struct Context {
  const Config& config;
  const Kernels& kernels;
  ThreadPool& pool;
  Workspace& workspace;
  const std::vector<Row>& rows;
  const AttentionPlan& plan;
  Profile& profile;
  LiveShares& live_shares;

  // Layers on what quantize_inputs made.
  void run(const std::vector<LinearOutput>& outputs) {
    run_linears(kernels, pool, workspace.quantized[0], rows.size(), outputs);
  }
};

// Normalises each row of x [rows][width] (row t at x + t * width; an empty norm leaves it), then quantises it
// as the layers' recipes say: once, or for each of at most three layers where these have norms inside.
void quantize_inputs(Context& context, const float* x, const std::vector<float>& norm,
                     std::vector<LinearOutput>& outputs);

// hidden [rows][hidden_size] += attention(norm(hidden))
void run_attention(Context& context, const Weights& weights, std::size_t layer, float* hidden);

}  // namespace bitnet
