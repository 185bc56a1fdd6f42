// The feed-forward half of a block: norm, gate and up, activation, sub-norm, down.
#pragma once

#include "attention.h"

namespace bitnet {

// hidden [rows][hidden_size] += feed_forward(norm(hidden)). The gated product stays in float32: relu^2
// overflows float16.
void run_feed_forward(Context& context, const Layer& layer, float* hidden);

}  // namespace bitnet
