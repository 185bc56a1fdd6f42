// Ternary linear layers: y = (codes . quantised x) * weight_scale / activation_scale + bias.
#pragma once

#include <cstdint>
#include <vector>

#include "../kernels/kernels.h"
#include "buffer.h"
#include "thread_pool.h"

namespace bitnet {

// Rows of activations as int8 codes; x[t][k] is about codes[t][k] / scales[t].
struct QuantizedRows {
  Buffer<std::int8_t> codes;  // [rows][padded columns]
  Buffer<float> scales;
  Buffer<std::int32_t> sums;
  Buffer<std::uint8_t> scratch;  // of run_linears, kept from call to call
  std::size_t columns = 0;       // padded

  void reserve(std::size_t rows, std::size_t padded) {
    columns = padded;
    codes.reserve(rows * padded);
    scales.reserve(rows);
    sums.reserve(rows);
  }
  void quantize(const Kernels& kernels, const float* x, std::size_t n, std::size_t row) {
    kernels.quantize(x, n, columns, codes.data() + row * columns, scales.data() + row, sums.data() + row);
  }
};

struct Linear {
  Buffer<std::uint8_t> weights;  // [rows][padded columns / 4], blocked as kernels.h says
  std::size_t rows = 0, columns = 0;
  float scale = 0.0f;
  std::vector<float> bias;  // empty, or one a row

  // A second copy for reading single columns (only where `add_columns` made it): [columns][column_bytes()],
  // as kernels.h says.
  Buffer<std::uint8_t> by_column;
  std::size_t row_chunks() const { return (rows + kChunkRows - 1) / kChunkRows; }
  std::size_t column_bytes() const { return row_chunks() * kChunkBytes; }
  void add_columns(const std::uint8_t* packed, ThreadPool& pool);

  // From a checkpoint's layout, uint8 [rows / 4][columns]: with R = rows / 4, the code of row r + i * R
  // stands in bits 2i..2i+1 of byte [r][column].
  static Linear from_packed(const std::uint8_t* packed, std::size_t rows, std::size_t columns, float scale,
                            std::vector<float> bias, ThreadPool& pool);
};

// Where a layer's output goes: y[t * stride + row] = value, or += value for the residual stream.
struct LinearOutput {
  const Linear* linear;
  float* y;
  std::size_t stride;
  bool add = false;
};

// Several layers on the same input in one parallel region: one quantisation, one barrier. Many tokens go
// through tables where the kernels have them; sums are integers, so the way taken changes no bit.
void run_linears(const Kernels& kernels, ThreadPool& pool, QuantizedRows& x, std::size_t tokens,
                 const std::vector<LinearOutput>& outputs);

}  // namespace bitnet
