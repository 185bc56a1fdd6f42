// NEON with the dot-product extension, optional from ARMv8.2 on: Cortex-A55 and A76, Neoverse, Apple M1 and
// all later ones. Sixteen products of int8 are added to four int32 at once; codes, 0..2 and 0..15, are int8
// too.
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

// The codes of sixteen bytes, each field where it lies as far as int8 allows: times 1, 4, 16 and 1.
struct Fields {
  int8x16_t field[4];
};

Fields in_place(uint8x16_t packed) {
  return {{vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(3))),
           vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(12))),
           vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(48))),
           vreinterpretq_s8_u8(vshrq_n_u8(packed, 6))}};
}

constexpr int kShift[4] = {0, 2, 4, 0};

// A sum of products with such a field, divided by what it is times.
int32x4_t unscale(int32x4_t sum, std::size_t field) {
  return vshlq_s32(sum, vdupq_n_s32(-kShift[field]));
}

// One row times one token. Eight sums hide the latency of sdot. A lane grows fastest in field 2, by
// 4 * 32 * 128 in 128 columns, which the contract's 2^24 columns just allow.
std::int32_t row_dot(const std::uint8_t* row, const std::int8_t* x, std::size_t columns) {
  int32x4_t sums[4][2];
  for (auto& field : sums)
    for (auto& sum : field) sum = vdupq_n_s32(0);
  for (std::size_t block = 0; block < columns / kBlockWeights; ++block) {
    for (std::size_t half = 0; half < 2; ++half) {
      const Fields codes = in_place(vld1q_u8(row + block * kBlockBytes + 16 * half));
      const std::int8_t* v = x + block * kBlockWeights + 16 * half;
      for (std::size_t i = 0; i < 4; ++i)
        sums[i][half] = vdotq_s32(sums[i][half], codes.field[i], vld1q_s8(v + 32 * i));
    }
  }
  int32x4_t total = vdupq_n_s32(0);
  for (std::size_t i = 0; i < 4; ++i)
    for (const int32x4_t& sum : sums[i]) total = vaddq_s32(total, unscale(sum, i));
  return vaddvq_s32(total);
}

// One row times `Tokens` activations, which share the unpacked row. Fields 1 and 3 stay times 4 and are
// collected apart.
template <std::size_t Tokens>
void row_dots(const std::uint8_t* row, std::size_t columns, const std::int8_t* x, const std::int32_t* x_sums,
              std::int32_t* y, std::size_t y_stride) {
  const uint8x16_t three = vdupq_n_u8(3), twelve = vdupq_n_u8(12);
  int32x4_t sums[Tokens][2];
  for (auto& token : sums)
    for (auto& sum : token) sum = vdupq_n_s32(0);
  for (std::size_t block = 0; block < columns / kBlockWeights; ++block) {
    for (std::size_t half = 0; half < 2; ++half) {
      const uint8x16_t low = vld1q_u8(row + block * kBlockBytes + 16 * half), high = vshrq_n_u8(low, 4);
      const uint8x16_t fields[4] = {vandq_u8(low, three), vandq_u8(low, twelve), vandq_u8(high, three),
                                    vandq_u8(high, twelve)};
      for (std::size_t t = 0; t < Tokens; ++t) {
        const std::int8_t* v = x + t * columns + block * kBlockWeights + 16 * half;
        for (std::size_t i = 0; i < 4; ++i)
          sums[t][i % 2] = vdotq_s32(sums[t][i % 2], vreinterpretq_s8_u8(fields[i]), vld1q_s8(v + 32 * i));
      }
    }
  }
  for (std::size_t t = 0; t < Tokens; ++t)
    y[t * y_stride] = vaddvq_s32(vaddq_s32(sums[t][0], vshrq_n_s32(sums[t][1], 2))) - x_sums[t];
}

void ternary_gemm(const std::uint8_t* weights, std::size_t rows, std::size_t columns, const std::int8_t* x,
                  const std::int32_t* x_sums, std::size_t tokens, std::int32_t* y, std::size_t y_stride) {
  for (std::size_t n = 0; n < rows; ++n) {
    const std::uint8_t* row = weights + n * (columns / 4);
    std::size_t t = 0;
    for (; t + 4 <= tokens; t += 4)
      row_dots<4>(row, columns, x + t * columns, x_sums + t, y + t * y_stride + n, y_stride);
    if (t + 2 <= tokens) {
      row_dots<2>(row, columns, x + t * columns, x_sums + t, y + t * y_stride + n, y_stride);
      t += 2;
    }
    if (t < tokens) y[t * y_stride + n] = row_dot(row, x + t * columns, columns) - x_sums[t];
  }
}

void ternary_rows(const std::uint8_t* weights, const std::uint32_t* rows, std::size_t count,
                  std::size_t columns, const std::int8_t* x, std::int32_t x_sum, std::int32_t* y) {
  for (std::size_t i = 0; i < count; ++i)
    y[i] = row_dot(weights + rows[i] * (columns / 4), x, columns) - x_sum;
}

// One row times `Tokens` activations, which share the unpacked row.
template <std::size_t Tokens>
void nibble_row(const std::uint8_t* row, std::size_t columns, const std::int8_t* x,
                const std::int32_t* x_sums, std::int32_t* y, std::size_t y_stride) {
  int32x4_t sums[Tokens][4];  // [2 * half of the block + half of the byte]
  for (auto& token : sums)
    for (auto& sum : token) sum = vdupq_n_s32(0);
  for (std::size_t at = 0; at < columns / 2; at += kBlockBytes) {
    for (std::size_t half = 0; half < 2; ++half) {
      const uint8x16_t packed = vld1q_u8(row + at + 16 * half);
      const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15)));
      const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(packed, 4));
      for (std::size_t t = 0; t < Tokens; ++t) {
        const std::int8_t* v = x + t * columns + 2 * at + 16 * half;
        sums[t][2 * half] = vdotq_s32(sums[t][2 * half], low, vld1q_s8(v));
        sums[t][2 * half + 1] = vdotq_s32(sums[t][2 * half + 1], high, vld1q_s8(v + kBlockBytes));
      }
    }
  }
  for (std::size_t t = 0; t < Tokens; ++t) {
    const int32x4_t sum = vaddq_s32(vaddq_s32(sums[t][0], sums[t][1]), vaddq_s32(sums[t][2], sums[t][3]));
    y[t * y_stride] = vaddvq_s32(sum) - 8 * x_sums[t];
  }
}

#include "nibble_gemm.h"

// One row of signs times `Tokens` activations: a set bit becomes the byte -1, so sums are those of what the
// bits pick, negated. Two sums a token hide the latency of sdot.
template <std::size_t Tokens>
void sign_row(const std::uint8_t* row, std::size_t columns, const std::int8_t* x, const std::int32_t* x_sums,
              std::int32_t* y, std::size_t y_stride) {
  int32x4_t sums[Tokens][2];
  for (auto& token : sums)
    for (auto& sum : token) sum = vdupq_n_s32(0);
  for (std::size_t block = 0; block < columns / kBlockWeights; ++block) {
    const uint8x16_t packed = vld1q_u8(row + block * kSignBlockBytes);
    for (std::size_t bit = 0; bit < 8; ++bit) {
      const uint8x16_t mask = vtstq_u8(packed, vdupq_n_u8(static_cast<std::uint8_t>(1u << bit)));
      for (std::size_t t = 0; t < Tokens; ++t) {
        const int8x16_t v = vld1q_s8(x + t * columns + block * kBlockWeights + 16 * bit);
        sums[t][bit % 2] = vdotq_s32(sums[t][bit % 2], vreinterpretq_s8_u8(mask), v);
      }
    }
  }
  for (std::size_t t = 0; t < Tokens; ++t)
    y[t * y_stride] = -2 * vaddvq_s32(vaddq_s32(sums[t][0], sums[t][1])) - x_sums[t];
}

#include "sign_gemm.h"

// Sixteen bytes of each column at a time: 64 rows, whose sums stay in registers over the columns. The bytes
// of four columns are interleaved, so that sdot adds their four products row by row.
void ternary_columns(const std::uint8_t* matrix, std::size_t stride, std::size_t chunks, ColumnList list,
                     ColumnList /*next*/, std::int32_t* y) {
  for (std::size_t part = 0; part < chunks * kChunkBytes; part += 16) {
    int32x4_t sums[4][4];  // [field][quarter of the sixteen bytes]
    for (auto& field : sums)
      for (auto& sum : field) sum = vdupq_n_s32(0);
    for (std::size_t i = 0; i < list.count; i += kColumnGroup) {
      const auto load = [&](std::size_t column) {
        return vld1q_u8(matrix + list.columns[column] * stride + part);
      };
      std::int32_t four;
      std::memcpy(&four, list.x + i, sizeof(four));
      const int8x16_t values = vreinterpretq_s8_s32(vdupq_n_s32(four));
      const uint8x16x2_t ab = vzipq_u8(load(i), load(i + 1)), cd = vzipq_u8(load(i + 2), load(i + 3));
      for (std::size_t half = 0; half < 2; ++half) {
        const uint16x8x2_t four_columns =
            vzipq_u16(vreinterpretq_u16_u8(ab.val[half]), vreinterpretq_u16_u8(cd.val[half]));
        for (std::size_t j = 0; j < 2; ++j) {
          const Fields codes = in_place(vreinterpretq_u8_u16(four_columns.val[j]));
          for (std::size_t field = 0; field < 4; ++field) {
            int32x4_t& sum = sums[field][2 * half + j];
            sum = vdotq_s32(sum, codes.field[field], values);
          }
        }
      }
    }
    std::int32_t* rows = y + part / kChunkBytes * kChunkRows + part % kChunkBytes;
    for (std::size_t field = 0; field < 4; ++field) {
      for (std::size_t quarter = 0; quarter < 4; ++quarter) {
        std::int32_t* out = rows + field * kChunkBytes + 4 * quarter;
        vst1q_s32(out, vaddq_s32(vld1q_s32(out), unscale(sums[field][quarter], field)));
      }
    }
  }
}

constexpr Kernels neon_dotprod_table =
    with_float_kernels({"neon_dotprod", ternary_gemm, ternary_rows, ternary_columns, nibble_gemm, sign_gemm});

}  // namespace

const Kernels neon_dotprod_kernels = neon_dotprod_table;

}  // namespace bitnet
