// What happens to an input inside a projection before it is quantised: bitnet/quantize/norms.py and
// rotation.py, restated. Portable code, so every instruction set gets the same bits.
#pragma once

#include <cstddef>

#include "recipe.h"

namespace bitnet {

// y = x / sqrt(mean x^2 + eps) * weight, for `layer` with mean x subtracted from x first; y may be x. The
// kernels' rms_norm sums in float32: that of the norms outside projections.
void normalise(NormKind kind, const float* x, const float* weight, std::size_t n, float eps, float* y);

// x = H x / sqrt(block), H the Hadamard matrix of blocks of the largest power of two that divides n (arXiv
// 2504.18415, eq. 3).
void hadamard(float* x, std::size_t n);

}  // namespace bitnet
