// NEON as every 64-bit ARM CPU has it (ARMv8.0, no dot-product extension).
#include <arm_neon.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels.h"
#include "kv_codes.h"

namespace bitnet {
namespace {

#include "neon_lanes.h"

#include "float_kernels.h"

// Sixteen products of a code (0..15) and an int8, added to four int32. A product is at most 1920 in
// magnitude and only pairs are summed in int16.
int32x4_t accumulate(int32x4_t total, uint8x16_t codes, const std::int8_t* x) {
  const int8x16_t w = vreinterpretq_s8_u8(codes), v = vld1q_s8(x);
  const int16x8_t products =
      vmlal_s8(vmull_s8(vget_low_s8(w), vget_low_s8(v)), vget_high_s8(w), vget_high_s8(v));
  return vpadalq_s16(total, products);
}

std::int32_t row_dot(const std::uint8_t* row, const std::int8_t* x, std::size_t columns) {
  const uint8x16_t three = vdupq_n_u8(3);
  int32x4_t total[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};
  for (std::size_t block = 0; block < columns / kBlockWeights; ++block) {
    for (std::size_t half = 0; half < 2; ++half) {
      const uint8x16_t packed = vld1q_u8(row + block * kBlockBytes + 16 * half);
      const std::int8_t* v = x + block * kBlockWeights + 16 * half;
      total[half] = accumulate(total[half], vandq_u8(packed, three), v);
      total[half] = accumulate(total[half], vandq_u8(vshrq_n_u8(packed, 2), three), v + 32);
      total[half] = accumulate(total[half], vandq_u8(vshrq_n_u8(packed, 4), three), v + 64);
      total[half] = accumulate(total[half], vshrq_n_u8(packed, 6), v + 96);
    }
  }
  return vaddvq_s32(vaddq_s32(total[0], total[1]));
}

void ternary_gemm(const std::uint8_t* weights, std::size_t rows, std::size_t columns, const std::int8_t* x,
                  const std::int32_t* x_sums, std::size_t tokens, std::int32_t* y, std::size_t y_stride) {
  for (std::size_t n = 0; n < rows; ++n)
    for (std::size_t t = 0; t < tokens; ++t)
      y[t * y_stride + n] = row_dot(weights + n * (columns / 4), x + t * columns, columns) - x_sums[t];
}

std::int32_t nibble_row_dot(const std::uint8_t* row, const std::int8_t* x, std::size_t columns) {
  int32x4_t total[2] = {vdupq_n_s32(0), vdupq_n_s32(0)};
  for (std::size_t k = 0; k < columns; k += 2 * kBlockBytes, row += kBlockBytes, x += 2 * kBlockBytes) {
    for (std::size_t half = 0; half < 2; ++half) {
      const uint8x16_t packed = vld1q_u8(row + 16 * half);
      total[half] = accumulate(total[half], vandq_u8(packed, vdupq_n_u8(15)), x + 16 * half);
      total[half] = accumulate(total[half], vshrq_n_u8(packed, 4), x + 32 + 16 * half);
    }
  }
  return vaddvq_s32(vaddq_s32(total[0], total[1]));
}

void nibble_gemm(const std::uint8_t* weights, std::size_t rows, std::size_t columns, const std::int8_t* x,
                 const std::int32_t* x_sums, std::size_t tokens, std::int32_t* y, std::size_t y_stride) {
  for (std::size_t n = 0; n < rows; ++n)
    for (std::size_t t = 0; t < tokens; ++t)
      y[t * y_stride + n] =
          nibble_row_dot(weights + n * (columns / 2), x + t * columns, columns) - 8 * x_sums[t];
}

// One row of signs times `Tokens` activations: where a bit is set, the activation, else 0. Pairs of them are
// summed in int16; a block adds at most 8 * 2 * 128 = 2048, so fifteen blocks fit.
template <std::size_t Tokens>
void sign_row(const std::uint8_t* row, std::size_t columns, const std::int8_t* x, const std::int32_t* x_sums,
              std::int32_t* y, std::size_t y_stride) {
  constexpr std::size_t kBlocksPerFold = 15;
  const std::size_t blocks = columns / kBlockWeights;
  int32x4_t total[Tokens];
  for (auto& value : total) value = vdupq_n_s32(0);
  for (std::size_t first = 0; first < blocks; first += kBlocksPerFold) {
    const std::size_t last = first + kBlocksPerFold < blocks ? first + kBlocksPerFold : blocks;
    int16x8_t sum[Tokens];
    for (auto& value : sum) value = vdupq_n_s16(0);
    for (std::size_t block = first; block < last; ++block) {
      const uint8x16_t packed = vld1q_u8(row + block * kSignBlockBytes);
      for (std::size_t bit = 0; bit < 8; ++bit) {
        const uint8x16_t mask = vtstq_u8(packed, vdupq_n_u8(static_cast<std::uint8_t>(1u << bit)));
        for (std::size_t t = 0; t < Tokens; ++t) {
          const int8x16_t v = vld1q_s8(x + t * columns + block * kBlockWeights + 16 * bit);
          sum[t] = vpadalq_s8(sum[t], vandq_s8(v, vreinterpretq_s8_u8(mask)));
        }
      }
    }
    for (std::size_t t = 0; t < Tokens; ++t) total[t] = vpadalq_s16(total[t], sum[t]);
  }
  for (std::size_t t = 0; t < Tokens; ++t) y[t * y_stride] = 2 * vaddvq_s32(total[t]) - x_sums[t];
}

#include "sign_gemm.h"

void ternary_rows(const std::uint8_t* weights, const std::uint32_t* rows, std::size_t count,
                  std::size_t columns, const std::int8_t* x, std::int32_t x_sum, std::int32_t* y) {
  for (std::size_t i = 0; i < count; ++i)
    y[i] = row_dot(weights + rows[i] * (columns / 4), x, columns) - x_sum;
}

// Sixteen bytes of each column at a time: 64 rows, whose sums stay in registers over the columns.
void ternary_columns(const std::uint8_t* matrix, std::size_t stride, std::size_t chunks, ColumnList list,
                     ColumnList /*next*/, std::int32_t* y) {
  const uint8x16_t three = vdupq_n_u8(3);
  for (std::size_t part = 0; part < chunks * kChunkBytes; part += 16) {
    int32x4_t sums[4][4];
    for (auto& field : sums)
      for (auto& sum : field) sum = vdupq_n_s32(0);
    for (std::size_t i = 0; i < list.count; ++i) {
      const uint8x16_t packed = vld1q_u8(matrix + list.columns[i] * stride + part);
      const int8x8_t value = vdup_n_s8(list.x[i]);
      const uint8x16_t fields[4] = {vandq_u8(packed, three), vandq_u8(vshrq_n_u8(packed, 2), three),
                                    vandq_u8(vshrq_n_u8(packed, 4), three), vshrq_n_u8(packed, 6)};
      for (int field = 0; field < 4; ++field) {
        const int8x16_t codes = vreinterpretq_s8_u8(fields[field]);
        const int16x8_t low = vmull_s8(vget_low_s8(codes), value),
                        high = vmull_s8(vget_high_s8(codes), value);
        sums[field][0] = vaddw_s16(sums[field][0], vget_low_s16(low));
        sums[field][1] = vaddw_s16(sums[field][1], vget_high_s16(low));
        sums[field][2] = vaddw_s16(sums[field][2], vget_low_s16(high));
        sums[field][3] = vaddw_s16(sums[field][3], vget_high_s16(high));
      }
    }
    std::int32_t* rows = y + part / kChunkBytes * kChunkRows + part % kChunkBytes;
    for (std::size_t field = 0; field < 4; ++field) {
      for (std::size_t quarter = 0; quarter < 4; ++quarter) {
        std::int32_t* out = rows + field * kChunkBytes + 4 * quarter;
        vst1q_s32(out, vaddq_s32(vld1q_s32(out), sums[field][quarter]));
      }
    }
  }
}

constexpr Kernels neon_table =
    with_float_kernels({"neon", ternary_gemm, ternary_rows, ternary_columns, nibble_gemm, sign_gemm});

}  // namespace

const Kernels neon_kernels = neon_table;

}  // namespace bitnet
