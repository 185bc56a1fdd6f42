#include "feed_forward.h"

#include <algorithm>

namespace bitnet {
namespace {

constexpr std::size_t kTaskRows = 64, kMostTaskRows = 256;
// Tokens that look for dead neurons: each reads its own rows and columns, so more never pay.
constexpr std::size_t kFewTokens = 4;
// Live shares, summed over the tokens, up to which leaving out the dead ones pays: listed rows are shorter
// streams than whole matrices, and columns are short runs of cache lines, about three times as dear a byte.
// Measured on Zen 4 with 2B4T's shape, one and two threads: equal at 0.4 to 0.5, and at 0.28 to 0.30.
constexpr double kRowsPay = 0.45;
constexpr double kColumnsPay = 0.29;

bool pays(const std::vector<LiveList>& lists, double share, std::size_t all) {
  std::size_t live = 0;
  for (const LiveList& list : lists) live += list.indices.size();
  return static_cast<double>(live) <= share * static_cast<double>(all);
}

void run_gated_product(Context& context, std::size_t width) {
  Workspace& space = context.workspace;
  const auto gate =
      context.config.activation == Activation::relu2 ? context.kernels.relu2_gate : context.kernels.silu_gate;
  context.pool.run(context.rows.size(), [&](std::size_t row, std::size_t) {
    float* values = space.gate.data() + row * width;
    gate(values, space.up.data() + row * width, width, values);
  });
}

// The rows whose gate is positive, for every token. Without a branch: half of the gates of random weights are
// positive, in no order a branch predictor learns. NaN is live.
void find_live_rows(Context& context, std::size_t width) {
  Workspace& space = context.workspace;
  space.live.resize(context.rows.size());
  for (std::size_t t = 0; t < context.rows.size(); ++t) {
    const float* gate = space.gate.data() + t * width;
    std::vector<std::uint32_t>& indices = space.live[t].indices;
    indices.resize(width);
    std::size_t found = 0;
    for (std::size_t row = 0; row < width; ++row) {
      indices[found] = static_cast<std::uint32_t>(row);
      found += gate[row] <= 0.0f ? 0 : 1;
    }
    indices.resize(found);
    context.live_shares.up_rows += found;
  }
  context.live_shares.tokens += context.rows.size();
}

// Sums of the listed rows of a layer with token t.
void sum_rows(const Kernels& kernels, const Linear& linear, const QuantizedRows& x, std::size_t t,
              const std::uint32_t* rows, std::size_t count, std::int32_t* sums) {
  const std::int8_t* codes = x.codes.data() + t * x.columns;
  const std::int32_t sum = x.sums.data()[t];
  if (linear.recipe.weights == WeightKind::ternary)
    return kernels.ternary_rows(linear.weights.data(), rows, count, x.columns, codes, sum, sums);
  for (std::size_t i = 0; i < count; ++i)
    kernels.sign_gemm(linear.weights.data() + rows[i] * linear.row_bytes(), 1, x.columns, codes, &sum, 1,
                      sums + i, 1);
}

// up [width] of token t: the live rows computed, 0 in the others, which the product never sees.
void run_live_rows(Context& context, const LinearOutput& output, std::size_t t) {
  const Linear& up = *output.linear;
  const QuantizedRows& x = *output.x;
  const std::vector<std::uint32_t>& live = context.workspace.live[t].indices;
  float* y = context.workspace.up.data() + t * up.rows;
  std::fill(y, y + up.rows, 0.0f);
  const float x_scale = x.scales.data()[t];
  const bool by_row = up.scales_by_row();
  // Four tasks a thread: long ones lose less at their ends, where nothing is fetched ahead.
  const std::size_t share = live.size() / (4 * context.pool.threads()) + 1;
  const std::size_t task_rows = std::min(std::max(share, kTaskRows), kMostTaskRows);
  context.pool.run((live.size() + task_rows - 1) / task_rows, [&](std::size_t task, std::size_t) {
    const std::uint32_t* rows = live.data() + task * task_rows;
    const std::size_t count = std::min(task_rows, live.size() - task * task_rows);
    std::int32_t sums[kMostTaskRows];
    float values[kMostTaskRows], bias[kMostTaskRows], scales[kMostTaskRows];
    sum_rows(context.kernels, up, x, t, rows, count, sums);
    if (!up.bias.empty())
      for (std::size_t i = 0; i < count; ++i) bias[i] = up.bias[rows[i]];
    if (by_row)
      for (std::size_t i = 0; i < count; ++i) scales[i] = up.scales[rows[i]];
    dequantize(context.kernels, sums, count, by_row ? scales : up.scales.data(), by_row, x_scale,
               up.bias.empty() ? nullptr : bias, values);
    for (std::size_t i = 0; i < count; ++i) y[rows[i]] = values[i];
  });
}

// The columns of down whose int8 input is not 0, for every token.
void find_live_columns(Context& context, std::size_t width) {
  const QuantizedRows& x = context.workspace.quantized[0];
  for (std::size_t t = 0; t < context.rows.size(); ++t) {
    const std::int8_t* codes = x.codes.data() + t * x.columns;
    LiveList& list = context.workspace.live[t];
    list.indices.resize(width);
    list.values.resize(width);
    std::size_t found = 0;
    for (std::size_t column = 0; column < width; ++column) {
      list.indices[found] = static_cast<std::uint32_t>(column);
      list.values[found] = codes[column];
      found += codes[column] != 0 ? 1 : 0;
    }
    context.live_shares.down_columns += found;
    // whole groups: a column times 0 adds nothing
    const std::size_t padded = (found + kColumnGroup - 1) / kColumnGroup * kColumnGroup;
    list.indices.resize(found);
    list.values.resize(found);
    list.indices.resize(padded, 0);
    list.values.resize(padded, 0);
  }
}

// hidden [hidden_size] += down of token t, from its live columns.
void run_live_columns(Context& context, const Linear& down, std::size_t t, float* hidden) {
  const QuantizedRows& x = context.workspace.quantized[0];
  const LiveList& live = context.workspace.live[t];
  const float x_scale = x.scales.data()[t];
  const bool by_row = down.scales_by_row();
  const std::size_t chunks = down.row_chunks(), parts = std::min(chunks, context.pool.threads());
  std::int32_t* const all_sums = context.workspace.column_sums.reserve(chunks * kChunkRows);
  context.pool.run(parts, [&](std::size_t part, std::size_t) {
    const std::size_t from = chunks * part / parts, to = chunks * (part + 1) / parts;
    const std::uint8_t* matrix = down.by_column.data() + from * kChunkBytes;
    std::int32_t* const sums = all_sums + from * kChunkRows;
    std::fill_n(sums, (to - from) * kChunkRows, -x.sums.data()[t]);
    const auto block = [&](std::size_t first) {
      const std::size_t start = std::min(first, live.indices.size());
      return ColumnList{live.indices.data() + start, live.values.data() + start,
                        std::min(kColumnBlock, live.indices.size() - start)};
    };
    for (std::size_t first = 0; first < live.indices.size(); first += kColumnBlock)
      context.kernels.ternary_columns(matrix, down.column_bytes(), to - from, block(first),
                                      block(first + kColumnBlock), sums);
    for (std::size_t row = from * kChunkRows; row < std::min(to * kChunkRows, down.rows); row += kTaskRows) {
      float delta[kTaskRows];
      const std::size_t count = std::min(kTaskRows, down.rows - row);
      dequantize(context.kernels, all_sums + row, count, down.scales.data() + (by_row ? row : 0), by_row,
                 x_scale, down.bias.empty() ? nullptr : down.bias.data() + row, delta);
      for (std::size_t i = 0; i < count; ++i) hidden[row + i] += delta[i];
    }
  });
}

void run_gate_and_up(Context& context, const Layer& layer, bool skip_dead, const float* hidden) {
  Workspace& space = context.workspace;
  const std::size_t rows = context.rows.size(), width = context.config.intermediate_size;
  std::vector<LinearOutput> both{{&layer.gate, space.gate.data(), width},
                                 {&layer.up, space.up.data(), width}};
  quantize_inputs(context, hidden, layer.post_attention_norm, both);
  if (!skip_dead) return context.run(both);
  context.run({both[0]});
  find_live_rows(context, width);
  // rows are read alone only where they are whole
  if (layer.up.recipe.column_groups > 1 || !pays(space.live, kRowsPay, width)) return context.run({both[1]});
  for (std::size_t t = 0; t < rows; ++t) run_live_rows(context, both[1], t);
}

void run_down(Context& context, const Layer& layer, bool skip_dead, float* hidden) {
  Workspace& space = context.workspace;
  const std::size_t rows = context.rows.size(), hidden_size = context.config.hidden_size;
  const std::size_t width = context.config.intermediate_size;
  std::vector<LinearOutput> down{{&layer.down, hidden, hidden_size, true}};
  quantize_inputs(context, space.gate.data(), layer.feed_forward_sub_norm, down);
  if (skip_dead && !layer.down.may_skip_columns()) {
    context.live_shares.down_columns += rows * width;
  } else if (skip_dead) {
    find_live_columns(context, width);
    if (pays(space.live, kColumnsPay, width)) {
      for (std::size_t t = 0; t < rows; ++t)
        run_live_columns(context, layer.down, t, hidden + t * hidden_size);
      return;
    }
  }
  context.run(down);
}

}  // namespace

void run_feed_forward(Context& context, const Layer& layer, float* hidden) {
  const bool skip_dead = context.rows.size() <= kFewTokens && context.config.activation == Activation::relu2;
  {
    const Profile::Scope scope(context.profile, Part::gate_up);
    run_gate_and_up(context, layer, skip_dead, hidden);
  }
  const Profile::Scope scope(context.profile, Part::down);
  run_gated_product(context, context.config.intermediate_size);
  run_down(context, layer, skip_dead, hidden);
}

}  // namespace bitnet
