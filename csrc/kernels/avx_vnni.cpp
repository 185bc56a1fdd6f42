// AVX2 with VNNI in its 256-bit form (AVX-VNNI): Intel since Alder Lake, which has no AVX-512, and AMD since
// Zen 5.
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels.h"
#include "kv_codes.h"

namespace bitnet {
namespace {

#include "avx2_lanes.h"

#include "float_kernels.h"

// How far ahead weights are fetched into L2, in bytes: two pages, as in avx512_vnni.cpp.
constexpr std::size_t kAhead = 8192;

__m256i load256(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

// One weight row times `Tokens` activations. Rows come one after the other, a single sequential stream. Codes
// 0..2 are the unsigned side of vpdpbusd, which adds four products straight into int32. Fields 1 and 3 are
// masked in place (code * 4) and collected apart, which saves two of three shifts. `Sums` sums for each of
// both hide the latency of vpdpbusd where the tokens are too few to.
template <std::size_t Tokens, std::size_t Sums>
void row_dots(const std::uint8_t* row, const std::uint8_t* ahead, std::size_t columns, const std::int8_t* x,
              const std::int32_t* x_sums, std::int32_t* y, std::size_t y_stride) {
  const __m256i three = _mm256_set1_epi8(3), twelve = _mm256_set1_epi8(12);
  __m256i plain[Tokens][Sums], shifted[Tokens][Sums];
  for (std::size_t t = 0; t < Tokens; ++t)
    for (std::size_t i = 0; i < Sums; ++i) plain[t][i] = shifted[t][i] = _mm256_setzero_si256();
  for (std::size_t block = 0; block < columns / kBlockWeights; ++block) {
    _mm_prefetch(reinterpret_cast<const char*>(ahead + block * kBlockBytes), _MM_HINT_T1);
    const __m256i low = load256(row + block * kBlockBytes), high = _mm256_srli_epi16(low, 4);
    const __m256i field0 = _mm256_and_si256(low, three), field1 = _mm256_and_si256(low, twelve);
    const __m256i field2 = _mm256_and_si256(high, three), field3 = _mm256_and_si256(high, twelve);
    for (std::size_t t = 0; t < Tokens; ++t) {
      const std::int8_t* v = x + t * columns + block * kBlockWeights;
      __m256i &plain2 = plain[t][Sums - 1], &shifted3 = shifted[t][Sums - 1];
      plain[t][0] = _mm256_dpbusd_avx_epi32(plain[t][0], field0, load256(v));
      shifted[t][0] = _mm256_dpbusd_avx_epi32(shifted[t][0], field1, load256(v + 32));
      plain2 = _mm256_dpbusd_avx_epi32(plain2, field2, load256(v + 64));
      shifted3 = _mm256_dpbusd_avx_epi32(shifted3, field3, load256(v + 96));
    }
  }
  for (std::size_t t = 0; t < Tokens; ++t) {
    for (std::size_t i = 1; i < Sums; ++i) {
      plain[t][0] = _mm256_add_epi32(plain[t][0], plain[t][i]);
      shifted[t][0] = _mm256_add_epi32(shifted[t][0], shifted[t][i]);
    }
    const __m256i total = _mm256_add_epi32(plain[t][0], _mm256_srai_epi32(shifted[t][0], 2));
    y[t * y_stride] = horizontal_sum(total) - x_sums[t];
  }
}

void ternary_gemm(const std::uint8_t* weights, std::size_t rows, std::size_t columns, const std::int8_t* x,
                  const std::int32_t* x_sums, std::size_t tokens, std::int32_t* y, std::size_t y_stride) {
  for (std::size_t t = 0; t < tokens; t += 4) {
    const std::size_t count = tokens - t < 4 ? tokens - t : 4;
    const auto dots = count == 4   ? row_dots<4, 1>
                      : count == 3 ? row_dots<3, 1>
                      : count == 2 ? row_dots<2, 2>
                                   : row_dots<1, 2>;
    for (std::size_t n = 0; n < rows; ++n) {
      const std::uint8_t* row = weights + n * (columns / 4);
      dots(row, row + kAhead, columns, x + t * columns, x_sums + t, y + t * y_stride + n, y_stride);
    }
  }
}

void ternary_rows(const std::uint8_t* weights, const std::uint32_t* rows, std::size_t count,
                  std::size_t columns, const std::int8_t* x, std::int32_t x_sum, std::int32_t* y) {
  const std::size_t row_bytes = columns / 4, rows_ahead = kAhead / row_bytes + 1;
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint8_t* ahead = weights + rows[i + rows_ahead < count ? i + rows_ahead : i] * row_bytes;
    row_dots<1, 2>(weights + rows[i] * row_bytes, ahead, columns, x, &x_sum, y + i, 1);
  }
}

// One row times `Tokens` activations; two sums a token hide the latency of vpdpbusd.
template <std::size_t Tokens>
void nibble_row(const std::uint8_t* row, std::size_t columns, const std::int8_t* x,
                const std::int32_t* x_sums, std::int32_t* y, std::size_t y_stride) {
  const __m256i fifteen = _mm256_set1_epi8(15);
  __m256i low[Tokens], high[Tokens];
  for (std::size_t t = 0; t < Tokens; ++t) low[t] = high[t] = _mm256_setzero_si256();
  for (std::size_t at = 0; at < columns / 2; at += kBlockBytes) {
    _mm_prefetch(reinterpret_cast<const char*>(row + at + kAhead), _MM_HINT_T1);
    const __m256i packed = load256(row + at);
    const __m256i first = _mm256_and_si256(packed, fifteen);
    const __m256i second = _mm256_and_si256(_mm256_srli_epi16(packed, 4), fifteen);
    for (std::size_t t = 0; t < Tokens; ++t) {
      const std::int8_t* v = x + t * columns + 2 * at;
      low[t] = _mm256_dpbusd_avx_epi32(low[t], first, load256(v));
      high[t] = _mm256_dpbusd_avx_epi32(high[t], second, load256(v + kBlockBytes));
    }
  }
  for (std::size_t t = 0; t < Tokens; ++t)
    y[t * y_stride] = horizontal_sum(_mm256_add_epi32(low[t], high[t])) - 8 * x_sums[t];
}

#include "nibble_gemm.h"

// One row of signs times `Tokens` activations: a block's 16 bytes stand in both halves of a register, and
// each half has masks of its own. Bits 0 and 1 (after the shift 4 and 5), times 1 and 2, are collected apart
// from bits 2 and 3, times 4 and 8. Two sums each for one token hide the latency of vpdpbusd.
template <std::size_t Tokens>
void sign_row(const std::uint8_t* row, std::size_t columns, const std::int8_t* x, const std::int32_t* x_sums,
              std::int32_t* y, std::size_t y_stride) {
  constexpr std::size_t kSums = Tokens == 1 ? 2 : 1;
  const auto halves = [](__m128i low, __m128i high) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
  };
  const __m256i bits01 = halves(_mm_set1_epi8(1), _mm_set1_epi8(2)), bits23 = _mm256_slli_epi16(bits01, 2);
  __m256i sum01[Tokens][kSums], sum23[Tokens][kSums];
  for (std::size_t t = 0; t < Tokens; ++t)
    for (std::size_t i = 0; i < kSums; ++i) sum01[t][i] = sum23[t][i] = _mm256_setzero_si256();
  for (std::size_t block = 0; block < columns / kBlockWeights; ++block) {
    const std::uint8_t* address = row + block * kSignBlockBytes;
    _mm_prefetch(reinterpret_cast<const char*>(address + kAhead), _MM_HINT_T1);
    const __m256i low =
        _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(address)));
    const __m256i high = _mm256_srli_epi16(low, 4);
    const __m256i part0 = _mm256_and_si256(low, bits01), part1 = _mm256_and_si256(low, bits23);
    const __m256i part2 = _mm256_and_si256(high, bits01), part3 = _mm256_and_si256(high, bits23);
    for (std::size_t t = 0; t < Tokens; ++t) {
      const std::int8_t* v = x + t * columns + block * kBlockWeights;
      __m256i &later01 = sum01[t][kSums - 1], &later23 = sum23[t][kSums - 1];
      sum01[t][0] = _mm256_dpbusd_avx_epi32(sum01[t][0], part0, load256(v));
      sum23[t][0] = _mm256_dpbusd_avx_epi32(sum23[t][0], part1, load256(v + 32));
      later01 = _mm256_dpbusd_avx_epi32(later01, part2, load256(v + 64));
      later23 = _mm256_dpbusd_avx_epi32(later23, part3, load256(v + 96));
    }
  }
  const __m256i shifts = halves(_mm_setzero_si128(), _mm_set1_epi32(1));
  for (std::size_t t = 0; t < Tokens; ++t) {
    for (std::size_t i = 1; i < kSums; ++i) {
      sum01[t][0] = _mm256_add_epi32(sum01[t][0], sum01[t][i]);
      sum23[t][0] = _mm256_add_epi32(sum23[t][0], sum23[t][i]);
    }
    const __m256i sum = _mm256_add_epi32(sum01[t][0], _mm256_srai_epi32(sum23[t][0], 2));
    y[t * y_stride] = 2 * horizontal_sum(_mm256_srav_epi32(sum, shifts)) - x_sums[t];
  }
}

#include "sign_gemm.h"

#include "column_fetcher.h"

// Bytes 0-7 and 16-23 of 32, or bytes 8-15 and 24-31, of four columns, interleaved so that vpdpbusd adds
// their four products row by row. Fields are masked where they lie: 1, 4, 16 and 64 times the codes, at most
// 128. 64 columns so make at most 64 * 128 * 128 = 2^20. The eight sums stay in registers over the columns.
template <bool Upper, class Load>
void half_columns(ColumnList list, Load load, std::int32_t* rows) {
  const auto interleave8 = [](__m256i a, __m256i b) {
    return Upper ? _mm256_unpackhi_epi8(a, b) : _mm256_unpacklo_epi8(a, b);
  };
  const __m256i masks[4] = {_mm256_set1_epi8(3), _mm256_set1_epi8(12), _mm256_set1_epi8(48),
                            _mm256_set1_epi8(-64)};
  __m256i sums[4][2];  // [field][half]: lane 4l + i is the row of byte 16l + 8 Upper + 4 half + i
  for (auto& field : sums) field[0] = field[1] = _mm256_setzero_si256();
  for (std::size_t i = 0; i < list.count; i += kColumnGroup) {
    std::int32_t four;
    std::memcpy(&four, list.x + i, sizeof(four));
    const __m256i values = _mm256_set1_epi32(four);
    const __m256i ab = interleave8(load(i), load(i + 1)), cd = interleave8(load(i + 2), load(i + 3));
    const __m256i packed[2] = {_mm256_unpacklo_epi16(ab, cd), _mm256_unpackhi_epi16(ab, cd)};
    for (int field = 0; field < 4; ++field)
      for (int half = 0; half < 2; ++half)
        sums[field][half] =
            _mm256_dpbusd_avx_epi32(sums[field][half], _mm256_and_si256(packed[half], masks[field]), values);
  }
  for (int field = 0; field < 4; ++field) {
    for (int half = 0; half < 2; ++half) {
      alignas(32) std::int32_t lanes[8];
      _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_srai_epi32(sums[field][half], 2 * field));
      std::int32_t* out = rows + field * static_cast<int>(kChunkBytes) + 8 * Upper + 4 * half;
      for (int i = 0; i < 4; ++i) {
        out[i] += lanes[i];
        out[16 + i] += lanes[4 + i];
      }
    }
  }
}

// Half a line (128 rows) at a time, and that in two passes: sixteen sums at once would leave no register.
void ternary_columns(const std::uint8_t* matrix, std::size_t stride, std::size_t chunks, ColumnList list,
                     ColumnList next, std::int32_t* y) {
  ColumnFetcher fetcher(matrix, stride, chunks, next);
  for (std::size_t half = 0; half < chunks * kChunkBytes; half += 32) {
    const auto load = [&](std::size_t i) { return load256(matrix + list.columns[i] * stride + half); };
    const auto load_and_fetch = [&](std::size_t i) {
      if (i % 2 == 0) fetcher.fetch(1);
      return load(i);
    };
    std::int32_t* rows = y + half / kChunkBytes * kChunkRows + half % kChunkBytes;
    half_columns<false>(list, load_and_fetch, rows);
    half_columns<true>(list, load, rows);
  }
}

#include "table_gemm.h"

#include "sign_table_gemm.h"

#include "small_table_gemm.h"

// Measured with the same instruction in its AVX-512 form at 256 bits on a Zen 4 core, 1280 rows of 2560:
// ternary_gemm 165 GMAC/s, tables 205 for 16 tokens and 240 for 32: equal at 13 tokens of 16, and at 22
// of 32.
constexpr std::size_t kFewestMany = 14;
// Signs: sign_gemm 197 GMAC/s, tables 205 for 13 tokens and 251 for 16.
constexpr std::size_t kFewestSigns = 13;

constexpr Kernels avx_vnni_table = with_float_kernels(
    {"avx_vnni", ternary_gemm, ternary_rows, ternary_columns, nibble_gemm, sign_gemm, ternary_gemm_many,
     kFewestMany, sign_gemm_many, kFewestSigns, ternary_gemm_small, kFewestSmall});

}  // namespace

const Kernels avx_vnni_kernels = avx_vnni_table;

}  // namespace bitnet
