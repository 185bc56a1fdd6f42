// The activation quantisers of bitnet/quantize/activations.py, restated. Every kind ends in int8 codes, so
// that the same exact integer products serve all of them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../kernels/kernels.h"
#include "recipe.h"

namespace bitnet {

// codes [padded] of x [n], zero from n on, their factor (codes / scale is about x) and their sum. int8 is the
// kernel; the others are portable code with means in float64, so that no instruction set moves a code. An
// input that is not finite gives scale NaN and zero codes. `scratch` has room for n floats, and is not x.
void quantize_input(const Kernels& kernels, InputKind kind, const float* x, std::size_t n, std::size_t padded,
                    float* scratch, std::int8_t* codes, float* scale, std::int32_t* sum);

}  // namespace bitnet
