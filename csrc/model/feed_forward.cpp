#include "feed_forward.h"

#include <algorithm>

namespace bitnet {
namespace {

constexpr std::size_t kTaskRows = 64;
// Columns are read one cache line at a time, in no order the prefetcher knows, which costs about twice the
// time a byte of the streamed rows does. Measured on 2B4T's shape: equal at half of the columns live.
constexpr double kColumnsPay = 0.5;

void run_gated_product(Context& context, std::size_t width) {
  Workspace& space = context.workspace;
  const auto gate =
      context.config.activation == Activation::relu2 ? context.kernels.relu2_gate : context.kernels.silu_gate;
  context.pool.run(context.rows.size(), [&](std::size_t row, std::size_t) {
    float* values = space.gate.data() + row * width;
    gate(values, space.up.data() + row * width, width, values);
  });
}

// up [width] of one token: the live rows computed, 0 in the others, which the product never sees.
void run_live_rows(Context& context, const Linear& up) {
  Workspace& space = context.workspace;
  const Kernels& kernels = context.kernels;
  std::vector<std::uint32_t>& live = space.live;
  // No branch: half of the gates are positive, in no order a branch predictor learns. NaN is live.
  live.resize(up.rows);
  std::size_t found = 0;
  for (std::size_t row = 0; row < up.rows; ++row) {
    space.up.data()[row] = 0.0f;
    live[found] = static_cast<std::uint32_t>(row);
    found += space.gate.data()[row] <= 0.0f ? 0 : 1;
  }
  live.resize(found);
  context.live_shares.up_rows += live.size();
  const QuantizedRows& x = space.quantized;
  const float factor = up.scale / x.scales.data()[0];
  context.pool.run((live.size() + kTaskRows - 1) / kTaskRows, [&](std::size_t task, std::size_t) {
    const std::uint32_t* rows = live.data() + task * kTaskRows;
    const std::size_t count = std::min(kTaskRows, live.size() - task * kTaskRows);
    std::int32_t sums[kTaskRows];
    float values[kTaskRows], bias[kTaskRows];
    kernels.ternary_rows(up.weights.data(), rows, count, x.columns, x.codes.data(), x.sums.data()[0], sums);
    if (!up.bias.empty())
      for (std::size_t i = 0; i < count; ++i) bias[i] = up.bias[rows[i]];
    kernels.dequantize(sums, count, factor, up.bias.empty() ? nullptr : bias, values);
    for (std::size_t i = 0; i < count; ++i) space.up.data()[rows[i]] = values[i];
  });
}

// hidden += down of one token, from its live columns; false if so many are live that rows are faster.
bool run_live_columns(Context& context, const Linear& down, float* hidden) {
  Workspace& space = context.workspace;
  const QuantizedRows& x = space.quantized;
  std::vector<std::uint32_t>& live = space.live;
  live.resize(down.columns);
  space.live_values.resize(down.columns);
  std::size_t found = 0;
  for (std::size_t column = 0; column < down.columns; ++column) {
    const std::int8_t code = x.codes.data()[column];
    live[found] = static_cast<std::uint32_t>(column);
    space.live_values[found] = code;
    found += code != 0 ? 1 : 0;
  }
  live.resize(found);
  space.live_values.resize(found);
  context.live_shares.down_columns += live.size();
  if (static_cast<double>(live.size()) > kColumnsPay * static_cast<double>(down.columns)) return false;
  while (live.size() % kColumnGroup != 0) {  // whole groups: a column times 0 adds nothing
    live.push_back(0);
    space.live_values.push_back(0);
  }
  const float factor = down.scale / x.scales.data()[0];
  const std::size_t chunks = down.row_chunks(), parts = std::min(chunks, context.pool.threads());
  context.pool.run(parts, [&](std::size_t part, std::size_t) {
    const std::size_t from = chunks * part / parts, to = chunks * (part + 1) / parts;
    const std::uint8_t* matrix = down.by_column.data() + from * kChunkBytes;
    std::vector<std::int32_t> sums((to - from) * kChunkRows, -x.sums.data()[0]);
    const auto block = [&](std::size_t first) {
      const std::size_t start = std::min(first, live.size());
      return ColumnList{live.data() + start, space.live_values.data() + start,
                        std::min(kColumnBlock, live.size() - start)};
    };
    for (std::size_t first = 0; first < live.size(); first += kColumnBlock)
      context.kernels.ternary_columns(matrix, down.column_bytes(), to - from, block(first),
                                      block(first + kColumnBlock), sums.data());
    for (std::size_t row = from * kChunkRows; row < std::min(to * kChunkRows, down.rows); row += kTaskRows) {
      float delta[kTaskRows];
      const std::size_t count = std::min(kTaskRows, down.rows - row);
      context.kernels.dequantize(sums.data() + (row - from * kChunkRows), count, factor,
                                 down.bias.empty() ? nullptr : down.bias.data() + row, delta);
      for (std::size_t i = 0; i < count; ++i) hidden[row + i] += delta[i];
    }
  });
  return true;
}

}  // namespace

void run_feed_forward(Context& context, const Layer& layer, float* hidden) {
  const Config& config = context.config;
  Workspace& space = context.workspace;
  const std::size_t rows = context.rows.size(), width = config.intermediate_size;
  const bool skip_dead = rows == 1 && config.activation == Activation::relu2;
  {
    const Profile::Scope scope(context.profile, Part::gate_up);
    norm_and_quantize(context, hidden, layer.post_attention_norm);
    if (skip_dead) {
      ++context.live_shares.tokens;
      run_linears(context.kernels, context.pool, space.quantized, rows,
                  {{&layer.gate, space.gate.data(), width}});
      run_live_rows(context, layer.up);
    } else {
      run_linears(context.kernels, context.pool, space.quantized, rows,
                  {{&layer.gate, space.gate.data(), width}, {&layer.up, space.up.data(), width}});
    }
  }
  const Profile::Scope scope(context.profile, Part::down);
  run_gated_product(context, width);
  norm_and_quantize(context, space.gate.data(), layer.feed_forward_sub_norm);
  if (skip_dead && run_live_columns(context, layer.down, hidden)) return;
  run_linears(context.kernels, context.pool, space.quantized, rows,
              {{&layer.down, hidden, config.hidden_size, true}});
}

}  // namespace bitnet
