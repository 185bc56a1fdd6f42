// The feed-forward half of a block: norm, gate and up, activation, sub-norm, down; either norm may be
// missing.
#pragma once

#include "attention.h"

namespace bitnet {

// hidden [rows][hidden_size] += feed_forward(norm(hidden)). The gated product stays in float32: relu^2
// overflows float16.
//
// A neuron whose gate is not positive is dead: relu(gate)^2 * up = 0 whatever `up` is, and so is a column of
// down whose int8 input is 0. Few tokens therefore compute only their live rows of up, then read only their
// live columns of down, where that pays and zeros stay zeros (Linear::may_skip_columns). No bit changes: what
// is left out is exactly 0.
void run_feed_forward(Context& context, const Layer& layer, float* hidden);

}  // namespace bitnet
