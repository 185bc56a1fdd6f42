// AVX-512 with VNNI: Intel since Ice Lake (servers) and AMD since Zen 4.
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels.h"
#include "kv_codes.h"

namespace bitnet {
namespace {

#include "avx512_lanes.h"

#include "float_kernels.h"

// How far ahead weights are fetched into L2, in bytes. Two pages, because the hardware prefetcher does not
// cross one. Measured on Zen 4 from memory, one thread: 24.8 GB/s at 8 and 16 KB, 13 to 17 at 2 to 4 KB, 20
// without.
constexpr std::size_t kAhead = 8192;

// The four 32-weight fields of one 32-byte block, as two registers of 64 codes each: fields 0 and 1, then
// fields 2 and 3, which is the order the activations lie in.
struct Codes {
  __m512i first, second;
};

Codes unpack(const std::uint8_t* block) {
  const __m512i packed = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block)));
  const __m512i three = _mm512_set1_epi8(3);
  const __m512i shifts01 = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi64x(2), 1);
  const __m512i shifts23 = _mm512_add_epi64(shifts01, _mm512_set1_epi64(4));
  return {_mm512_and_si512(_mm512_srlv_epi64(packed, shifts01), three),
          _mm512_and_si512(_mm512_srlv_epi64(packed, shifts23), three)};
}

// `Rows` weight rows times `Tokens` activations; vpdpbusd sums four products straight into int32.
template <std::size_t Rows, std::size_t Tokens>
void tile(const std::uint8_t* weights, std::size_t columns, const std::int8_t* x, const std::int32_t* x_sums,
          std::int32_t* y, std::size_t y_stride) {
  const std::size_t row_bytes = columns / 4;
  __m512i total[Rows][Tokens];
  for (auto& row : total)
    for (auto& value : row) value = _mm512_setzero_si512();
  for (std::size_t block = 0; block < columns / kBlockWeights; ++block) {
    Codes codes[Rows];
    for (std::size_t r = 0; r < Rows; ++r) {
      const std::uint8_t* address = weights + r * row_bytes + block * kBlockBytes;
      _mm_prefetch(reinterpret_cast<const char*>(address + kAhead), _MM_HINT_T1);
      codes[r] = unpack(address);
    }
    for (std::size_t t = 0; t < Tokens; ++t) {
      const std::int8_t* token = x + t * columns + block * kBlockWeights;
      const __m512i x0 = _mm512_loadu_si512(token), x1 = _mm512_loadu_si512(token + 64);
      for (std::size_t r = 0; r < Rows; ++r) {
        total[r][t] = _mm512_dpbusd_epi32(total[r][t], codes[r].first, x0);
        total[r][t] = _mm512_dpbusd_epi32(total[r][t], codes[r].second, x1);
      }
    }
  }
  for (std::size_t r = 0; r < Rows; ++r)
    for (std::size_t t = 0; t < Tokens; ++t)
      y[t * y_stride + r] = _mm512_reduce_add_epi32(total[r][t]) - x_sums[t];
}

template <std::size_t Rows, std::size_t Tokens>
void run_rows(const std::uint8_t* weights, std::size_t rows, std::size_t columns, const std::int8_t* x,
              const std::int32_t* x_sums, std::int32_t* y, std::size_t y_stride) {
  const std::size_t row_bytes = columns / 4;
  std::size_t n = 0;
  for (; n + Rows <= rows; n += Rows)
    tile<Rows, Tokens>(weights + n * row_bytes, columns, x, x_sums, y + n, y_stride);
  for (; n < rows; ++n) tile<1, Tokens>(weights + n * row_bytes, columns, x, x_sums, y + n, y_stride);
}

// One row times one token. Rows come one after the other, a single sequential stream: four at once halve the
// speed from memory. `ahead` is what to fetch meanwhile. Four sums hide the latency of vpdpbusd.
std::int32_t row_dot(const std::uint8_t* row, const std::uint8_t* ahead, std::size_t columns,
                     const std::int8_t* x) {
  __m512i sums[4];
  for (auto& sum : sums) sum = _mm512_setzero_si512();
  const auto add = [&](std::size_t block, __m512i& first, __m512i& second) {
    const Codes codes = unpack(row + block * kBlockBytes);
    const std::int8_t* token = x + block * kBlockWeights;
    first = _mm512_dpbusd_epi32(first, codes.first, _mm512_loadu_si512(token));
    second = _mm512_dpbusd_epi32(second, codes.second, _mm512_loadu_si512(token + 64));
  };
  const std::size_t blocks = columns / kBlockWeights;
  std::size_t block = 0;
  for (; block + 2 <= blocks; block += 2) {
    _mm_prefetch(reinterpret_cast<const char*>(ahead + block * kBlockBytes), _MM_HINT_T1);
    add(block, sums[0], sums[1]);
    add(block + 1, sums[2], sums[3]);
  }
  if (block < blocks) add(block, sums[0], sums[1]);
  return _mm512_reduce_add_epi32(
      _mm512_add_epi32(_mm512_add_epi32(sums[0], sums[1]), _mm512_add_epi32(sums[2], sums[3])));
}

// 4 rows by 4 tokens fill 16 accumulators and 8 code registers of the 32 there are; the loads of a token
// serve four rows and the unpacking of a row four tokens.
void ternary_gemm(const std::uint8_t* weights, std::size_t rows, std::size_t columns, const std::int8_t* x,
                  const std::int32_t* x_sums, std::size_t tokens, std::int32_t* y, std::size_t y_stride) {
  std::size_t t = 0;
  for (; t + 4 <= tokens; t += 4)
    run_rows<4, 4>(weights, rows, columns, x + t * columns, x_sums + t, y + t * y_stride, y_stride);
  if (t + 2 <= tokens) {
    run_rows<4, 2>(weights, rows, columns, x + t * columns, x_sums + t, y + t * y_stride, y_stride);
    t += 2;
  }
  if (t == tokens) return;
  const std::size_t row_bytes = columns / 4;
  for (std::size_t n = 0; n < rows; ++n) {
    const std::uint8_t* row = weights + n * row_bytes;
    y[t * y_stride + n] = row_dot(row, row + kAhead, columns, x + t * columns) - x_sums[t];
  }
}

// One row times `Tokens` activations: 64 codes a register, low halves then high halves as the activations
// lie. Two sums a token hide the latency of vpdpbusd.
template <std::size_t Tokens>
void nibble_row(const std::uint8_t* row, std::size_t columns, const std::int8_t* x,
                const std::int32_t* x_sums, std::int32_t* y, std::size_t y_stride) {
  const __m512i fifteen = _mm512_set1_epi8(15);
  const __m512i shifts = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi64x(4), 1);
  __m512i total[Tokens][2];
  for (auto& token : total)
    for (auto& value : token) value = _mm512_setzero_si512();
  // columns is a multiple of 128: two blocks of 64 weights, 64 bytes, at a time
  for (std::size_t at = 0; at < columns; at += 128) {
    _mm_prefetch(reinterpret_cast<const char*>(row + at / 2 + kAhead), _MM_HINT_T1);
    for (std::size_t half = 0; half < 2; ++half) {
      const auto* block = reinterpret_cast<const __m256i*>(row + at / 2 + half * kBlockBytes);
      const __m512i packed = _mm512_broadcast_i64x4(_mm256_loadu_si256(block));
      const __m512i codes = _mm512_and_si512(_mm512_srlv_epi64(packed, shifts), fifteen);
      for (std::size_t t = 0; t < Tokens; ++t)
        total[t][half] =
            _mm512_dpbusd_epi32(total[t][half], codes, _mm512_loadu_si512(x + t * columns + at + 64 * half));
    }
  }
  for (std::size_t t = 0; t < Tokens; ++t)
    y[t * y_stride] = _mm512_reduce_add_epi32(_mm512_add_epi32(total[t][0], total[t][1])) - 8 * x_sums[t];
}

#include "nibble_gemm.h"

// A block's 16 bytes of signs stand in each quarter of a register, and each quarter has a mask of its own,
// bits 0 to 3 for the first 64 weights and 4 to 7 for the others. What is not masked out stays where it is,
// times 1 to 128; so a token costs one instruction for 64 weights, where mask registers and masked loads take
// two.
struct SignMasks {
  __m512i low =
      _mm512_setr_epi64(0x0101010101010101, 0x0101010101010101, 0x0202020202020202, 0x0202020202020202,
                        0x0404040404040404, 0x0404040404040404, 0x0808080808080808, 0x0808080808080808);
  __m512i high = _mm512_slli_epi64(low, 4);

  Codes unpack(const std::uint8_t* block) const {
    const __m512i packed = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block)));
    return {_mm512_and_si512(packed, low), _mm512_and_si512(packed, high)};
  }
};

// The sum of what the bits pick, from sums of the first and the second 64 weights of blocks.
std::int32_t sum_of_picked(__m512i first, __m512i second) {
  const __m512i shifts = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  const __m512i sum = _mm512_add_epi32(first, _mm512_srai_epi32(second, 4));
  return _mm512_reduce_add_epi32(_mm512_srav_epi32(sum, shifts));
}

template <std::size_t Rows, std::size_t Tokens>
void sign_tile(const std::uint8_t* weights, std::size_t columns, const std::int8_t* x,
               const std::int32_t* x_sums, std::int32_t* y, std::size_t y_stride) {
  const SignMasks masks;
  const std::size_t row_bytes = columns / 8;
  __m512i first[Rows][Tokens], second[Rows][Tokens];
  for (std::size_t r = 0; r < Rows; ++r)
    for (std::size_t t = 0; t < Tokens; ++t) first[r][t] = second[r][t] = _mm512_setzero_si512();
  for (std::size_t block = 0; block < columns / kBlockWeights; ++block) {
    Codes codes[Rows];
    for (std::size_t r = 0; r < Rows; ++r) {
      const std::uint8_t* address = weights + r * row_bytes + block * kSignBlockBytes;
      _mm_prefetch(reinterpret_cast<const char*>(address + kAhead), _MM_HINT_T1);
      codes[r] = masks.unpack(address);
    }
    for (std::size_t t = 0; t < Tokens; ++t) {
      const std::int8_t* token = x + t * columns + block * kBlockWeights;
      const __m512i x0 = _mm512_loadu_si512(token), x1 = _mm512_loadu_si512(token + 64);
      for (std::size_t r = 0; r < Rows; ++r) {
        first[r][t] = _mm512_dpbusd_epi32(first[r][t], codes[r].first, x0);
        second[r][t] = _mm512_dpbusd_epi32(second[r][t], codes[r].second, x1);
      }
    }
  }
  for (std::size_t r = 0; r < Rows; ++r)
    for (std::size_t t = 0; t < Tokens; ++t)
      y[t * y_stride + r] = 2 * sum_of_picked(first[r][t], second[r][t]) - x_sums[t];
}

// One row times one token, as row_dot.
std::int32_t sign_row_dot(const std::uint8_t* row, std::size_t columns, const std::int8_t* x) {
  const SignMasks masks;
  __m512i first[2], second[2];
  for (std::size_t i = 0; i < 2; ++i) first[i] = second[i] = _mm512_setzero_si512();
  const auto add = [&](std::size_t block, __m512i& to_first, __m512i& to_second) {
    const Codes codes = masks.unpack(row + block * kSignBlockBytes);
    const std::int8_t* token = x + block * kBlockWeights;
    to_first = _mm512_dpbusd_epi32(to_first, codes.first, _mm512_loadu_si512(token));
    to_second = _mm512_dpbusd_epi32(to_second, codes.second, _mm512_loadu_si512(token + 64));
  };
  const std::size_t blocks = columns / kBlockWeights;
  std::size_t block = 0;
  for (; block + 2 <= blocks; block += 2) {
    _mm_prefetch(reinterpret_cast<const char*>(row + block * kSignBlockBytes + kAhead), _MM_HINT_T1);
    add(block, first[0], second[0]);
    add(block + 1, first[1], second[1]);
  }
  if (block < blocks) add(block, first[0], second[0]);
  return sum_of_picked(_mm512_add_epi32(first[0], first[1]), _mm512_add_epi32(second[0], second[1]));
}

// 4 rows by 2 tokens fill 16 sums and 8 registers of masked bytes; the loads of a token serve four rows and
// the masking of a row two tokens.
void sign_gemm(const std::uint8_t* weights, std::size_t rows, std::size_t columns, const std::int8_t* x,
               const std::int32_t* x_sums, std::size_t tokens, std::int32_t* y, std::size_t y_stride) {
  const std::size_t row_bytes = columns / 8;
  std::size_t t = 0;
  for (; t + 2 <= tokens; t += 2) {
    std::size_t n = 0;
    for (; n + 4 <= rows; n += 4)
      sign_tile<4, 2>(weights + n * row_bytes, columns, x + t * columns, x_sums + t, y + t * y_stride + n,
                      y_stride);
    for (; n < rows; ++n)
      sign_tile<1, 2>(weights + n * row_bytes, columns, x + t * columns, x_sums + t, y + t * y_stride + n,
                      y_stride);
  }
  if (t == tokens) return;
  for (std::size_t n = 0; n < rows; ++n)
    y[t * y_stride + n] = 2 * sign_row_dot(weights + n * row_bytes, columns, x + t * columns) - x_sums[t];
}

void ternary_rows(const std::uint8_t* weights, const std::uint32_t* rows, std::size_t count,
                  std::size_t columns, const std::int8_t* x, std::int32_t x_sum, std::int32_t* y) {
  const std::size_t row_bytes = columns / 4, rows_ahead = kAhead / row_bytes + 1;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint8_t* ahead = weights + rows[i + rows_ahead < count ? i + rows_ahead : i] * row_bytes;
    y[i] = row_dot(weights + rows[i] * row_bytes, ahead, columns, x) - x_sum;
  }
}

#include "column_fetcher.h"

// The bytes of four columns are interleaved, so that vpdpbusd adds their four products row by row; the sums
// of a chunk stay in sixteen registers over the columns.
void ternary_columns(const std::uint8_t* matrix, std::size_t stride, std::size_t chunks, ColumnList list,
                     ColumnList next, std::int32_t* y) {
  const __m512i three = _mm512_set1_epi8(3);
  ColumnFetcher fetcher(matrix, stride, chunks, next);
  for (std::size_t chunk = 0; chunk < chunks; ++chunk, y += kChunkRows) {
    __m512i sums[4][4];  // [field][quarter]: lane 4l + i is the row of byte 16l + 4 quarter + i
    for (auto& field : sums)
      for (auto& sum : field) sum = _mm512_setzero_si512();
    for (std::size_t i = 0; i < list.count; i += kColumnGroup) {
      fetcher.fetch(kColumnGroup);
      const auto load = [&](std::size_t column) {
        return _mm512_loadu_si512(matrix + list.columns[column] * stride + chunk * kChunkBytes);
      };
      std::int32_t four;
      std::memcpy(&four, list.x + i, sizeof(four));
      const __m512i values = _mm512_set1_epi32(four);
      const __m512i a = load(i), b = load(i + 1), c = load(i + 2), d = load(i + 3);
      const __m512i ab_low = _mm512_unpacklo_epi8(a, b), ab_high = _mm512_unpackhi_epi8(a, b);
      const __m512i cd_low = _mm512_unpacklo_epi8(c, d), cd_high = _mm512_unpackhi_epi8(c, d);
      __m512i quarters[4] = {_mm512_unpacklo_epi16(ab_low, cd_low), _mm512_unpackhi_epi16(ab_low, cd_low),
                             _mm512_unpacklo_epi16(ab_high, cd_high),
                             _mm512_unpackhi_epi16(ab_high, cd_high)};
      // Unrolled by hand, or GCC keeps the sums in memory.
#pragma GCC unroll 4
      for (int field = 0; field < 4; ++field) {
#pragma GCC unroll 4
        for (int quarter = 0; quarter < 4; ++quarter) {
          const __m512i codes = _mm512_and_si512(quarters[quarter], three);
          sums[field][quarter] = _mm512_dpbusd_epi32(sums[field][quarter], codes, values);
          quarters[quarter] = _mm512_srli_epi16(quarters[quarter], 2);
        }
      }
    }
    for (std::size_t field = 0; field < 4; ++field) {
      for (std::size_t quarter = 0; quarter < 4; ++quarter) {
        alignas(64) std::int32_t lanes[16];
        _mm512_store_si512(lanes, sums[field][quarter]);
        for (std::size_t lane = 0; lane < 16; ++lane)
          y[field * kChunkBytes + lane / 4 * 16 + 4 * quarter + lane % 4] += lanes[lane];
      }
    }
  }
}

#include "table_gemm.h"

#include "sign_table_gemm.h"

#include "small_table_gemm.h"

// A Zen 4 core, 1280 rows of 2560: ternary_gemm 180-190 GMAC/s, tables 190 for 16 tokens and 235-245 for 32:
// equal at 25 tokens of 32.
constexpr std::size_t kFewestMany = 26;
// Signs: sign_gemm 160 GMAC/s, tables 170 for 11 tokens, 250 for 16 and 326 for 32.
constexpr std::size_t kFewestSigns = 11;

constexpr Kernels avx512_vnni_table = with_float_kernels(
    {"avx512_vnni", ternary_gemm, ternary_rows, ternary_columns, nibble_gemm, sign_gemm, ternary_gemm_many,
     kFewestMany, sign_gemm_many, kFewestSigns, ternary_gemm_small, kFewestSmall});

}  // namespace

const Kernels avx512_vnni_kernels = avx512_vnni_table;

}  // namespace bitnet
