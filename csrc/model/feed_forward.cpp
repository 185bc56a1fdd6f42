#include "feed_forward.h"

namespace bitnet {

void run_feed_forward(Context& context, const Layer& layer, float* hidden) {
  const Config& config = context.config;
  Workspace& space = context.workspace;
  const std::size_t rows = context.rows.size(), width = config.intermediate_size;

  norm_and_quantize(context, hidden, layer.post_attention_norm);
  run_linears(context.kernels, context.pool, space.quantized, rows,
              {{&layer.gate, space.gate.data(), width}, {&layer.up, space.up.data(), width}});

  const auto gate =
      config.activation == Activation::relu2 ? context.kernels.relu2_gate : context.kernels.silu_gate;
  context.pool.run(rows, [&](std::size_t row, std::size_t) {
    float* values = space.gate.data() + row * width;
    gate(values, space.up.data() + row * width, width, values);
  });

  norm_and_quantize(context, space.gate.data(), layer.feed_forward_sub_norm);
  run_linears(context.kernels, context.pool, space.quantized, rows,
              {{&layer.down, hidden, config.hidden_size, true}});
}

}  // namespace bitnet
