// Quantised linear layers: y = (codes . quantised x) * weight scale / input scale + bias, which is summed
// over the column groups where there are several (bitnet/quantize/linear.py).
#pragma once

#include <cstdint>
#include <vector>

#include "../kernels/kernels.h"
#include "buffer.h"
#include "quantized_rows.h"
#include "recipe.h"
#include "thread_pool.h"

namespace bitnet {

struct Linear {
  LinearRecipe recipe;
  Buffer<std::uint8_t> weights;  // [column groups][rows][row_bytes()], blocked as kernels.h says
  std::size_t rows = 0, columns = 0;
  std::vector<float> scales;       // one, or one a row, or one a column group
  std::vector<float> bias;         // empty, or one a row
  std::vector<float> norm_weight;  // [columns] of the norm inside, where the recipe has one

  std::size_t group_columns() const { return columns / recipe.column_groups; }
  std::size_t row_bytes() const {
    return padded_columns(group_columns()) / (recipe.weights == WeightKind::binary ? 8 : 4);
  }
  bool scales_by_row() const { return recipe.column_groups == 1 && scales.size() > 1; }

  // A second copy for reading single columns (only where `add_columns` made it): [columns][column_bytes()],
  // as kernels.h says. It is of use where inputs may be 0, and serves ternary weights in one group.
  Buffer<std::uint8_t> by_column;
  bool may_skip_columns() const {
    return recipe.weights == WeightKind::ternary && recipe.column_groups == 1 && recipe.keeps_zeros();
  }
  std::size_t row_chunks() const { return (rows + kChunkRows - 1) / kChunkRows; }
  std::size_t column_bytes() const { return row_chunks() * kChunkBytes; }
  void add_columns(const std::uint8_t* packed, ThreadPool& pool);

  // From a checkpoint's layout, uint8 [rows / 4][columns]: with R = rows / 4, the code of row r + i * R
  // stands in bits 2i..2i+1 of byte [r][column]. Binary: R = rows / 8, and bit i. `scales` has one for each
  // row group or column group.
  static Linear from_packed(const std::uint8_t* packed, std::size_t rows, std::size_t columns,
                            const LinearRecipe& recipe, const std::vector<float>& scales,
                            std::vector<float> bias, ThreadPool& pool);
  // Ternary, int8 inputs, one scale.
  static Linear from_packed(const std::uint8_t* packed, std::size_t rows, std::size_t columns, float scale,
                            std::vector<float> bias, ThreadPool& pool) {
    return from_packed(packed, rows, columns, {}, {scale}, std::move(bias), pool);
  }
};

// Where a layer's output goes: y[t * stride + row] = value, or += value for the residual stream.
struct LinearOutput {
  const Linear* linear;
  float* y;
  std::size_t stride;
  bool add = false;
  const QuantizedRows* x = nullptr;  // its input; null: the one that the layers of the call share
};

// Several layers on the same input in one parallel region: one quantisation, one barrier. Many tokens go
// through tables where the kernels have them; sums are integers, so the way taken changes no bit.
void run_linears(const Kernels& kernels, ThreadPool& pool, QuantizedRows& x, std::size_t tokens,
                 const std::vector<LinearOutput>& outputs);

// y [count] = sums * scales / x_scale (+ bias unless null); one scale for all, or one each.
void dequantize(const Kernels& kernels, const std::int32_t* sums, std::size_t count, const float* scales,
                bool one_each, float x_scale, const float* bias, float* y);

}  // namespace bitnet
