// Rows of activations as int8 codes, x[t][k] is about codes[t][k] / scales[t]: what linear layers multiply.
#pragma once

#include <cstdint>

#include "../kernels/kernels.h"
#include "buffer.h"
#include "recipe.h"

namespace bitnet {

struct QuantizedRows {
  Buffer<std::int8_t> codes;     // [groups][rows][columns]
  Buffer<float> scales;          // [groups][rows]
  Buffer<std::int32_t> sums;     // [groups][rows]
  Buffer<std::uint8_t> scratch;  // of run_linears, kept from call to call
  std::size_t rows = 0;
  std::size_t columns = 0;  // of a column group, padded

  void reserve(std::size_t count, std::size_t padded, std::size_t groups = 1) {
    rows = count;
    columns = padded;
    codes.reserve(groups * rows * padded);
    scales.reserve(groups * rows);
    sums.reserve(groups * rows);
  }

  // int8, one group
  void quantize(const Kernels& kernels, const float* x, std::size_t n, std::size_t row) {
    kernels.quantize(x, n, columns, codes.data() + row * columns, scales.data() + row, sums.data() + row);
  }

  // As a recipe says, norm and rotation included: x [n], norm_weight [n] or null. `scratch` has room for 2 n
  // floats.
  void quantize(const Kernels& kernels, const LinearRecipe& recipe, const float* norm_weight, const float* x,
                std::size_t n, std::size_t row, float* scratch);
};

}  // namespace bitnet
