// AVX2 with FMA and F16C: every x86 CPU since 2013 (Haswell, Zen).
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

// How far ahead weights are fetched into L2, in bytes: two pages, because the hardware prefetcher does not
// cross one. See avx512_vnni.cpp for the measurement.
constexpr std::size_t kAhead = 8192;

// One weight row times `Tokens` activations. Rows come one after the other, a single sequential stream: two
// at once halve the speed from memory. Codes 0..2 enter vpmaddubsw as the unsigned side. Fields 1 and 3 are
// masked in place (code * 4) and collected apart, which saves two of three shifts; their sum is divided by 4
// once it is 32 bits wide. The in-place half grows fastest: a block adds two products of pairs, 2 * (2 * 8 *
// 128) = 4096 in magnitude, so 7 blocks (28672) fit in int16 and 8 (32768) do not.
template <std::size_t Tokens>
void row_dots(const std::uint8_t* row, std::size_t columns, const std::int8_t* x, const std::int32_t* x_sums,
              std::int32_t* y, std::size_t y_stride) {
  constexpr std::size_t kBlocksPerFold = 7;
  const __m256i three = _mm256_set1_epi8(3), twelve = _mm256_set1_epi8(12), one = _mm256_set1_epi16(1);
  const std::size_t blocks = columns / kBlockWeights;
  __m256i total[Tokens];
  for (auto& value : total) value = _mm256_setzero_si256();
  for (std::size_t first = 0; first < blocks; first += kBlocksPerFold) {
    const std::size_t last = first + kBlocksPerFold < blocks ? first + kBlocksPerFold : blocks;
    __m256i plain[Tokens], shifted[Tokens];
    for (std::size_t t = 0; t < Tokens; ++t) plain[t] = shifted[t] = _mm256_setzero_si256();
    for (std::size_t block = first; block < last; ++block) {
      const std::uint8_t* address = row + block * kBlockBytes;
      _mm_prefetch(reinterpret_cast<const char*>(address + kAhead), _MM_HINT_T1);
      const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(address));
      const __m256i high = _mm256_srli_epi16(low, 4);
      const __m256i field0 = _mm256_and_si256(low, three), field1 = _mm256_and_si256(low, twelve);
      const __m256i field2 = _mm256_and_si256(high, three), field3 = _mm256_and_si256(high, twelve);
      for (std::size_t t = 0; t < Tokens; ++t) {
        const auto* v = reinterpret_cast<const __m256i*>(x + t * columns + block * kBlockWeights);
        plain[t] = _mm256_add_epi16(plain[t], _mm256_maddubs_epi16(field0, _mm256_loadu_si256(v)));
        shifted[t] = _mm256_add_epi16(shifted[t], _mm256_maddubs_epi16(field1, _mm256_loadu_si256(v + 1)));
        plain[t] = _mm256_add_epi16(plain[t], _mm256_maddubs_epi16(field2, _mm256_loadu_si256(v + 2)));
        shifted[t] = _mm256_add_epi16(shifted[t], _mm256_maddubs_epi16(field3, _mm256_loadu_si256(v + 3)));
      }
    }
    for (std::size_t t = 0; t < Tokens; ++t) {
      const __m256i quarter = _mm256_srai_epi32(_mm256_madd_epi16(shifted[t], one), 2);
      total[t] = _mm256_add_epi32(total[t], _mm256_add_epi32(_mm256_madd_epi16(plain[t], one), quarter));
    }
  }
  for (std::size_t t = 0; t < Tokens; ++t) y[t * y_stride] = horizontal_sum(total[t]) - x_sums[t];
}

void ternary_gemm(const std::uint8_t* weights, std::size_t rows, std::size_t columns, const std::int8_t* x,
                  const std::int32_t* x_sums, std::size_t tokens, std::int32_t* y, std::size_t y_stride) {
  for (std::size_t t = 0; t < tokens; t += 4) {
    const std::size_t count = tokens - t < 4 ? tokens - t : 4;
    const auto dots = count == 4   ? row_dots<4>
                      : count == 3 ? row_dots<3>
                      : count == 2 ? row_dots<2>
                                   : row_dots<1>;
    for (std::size_t n = 0; n < rows; ++n)
      dots(weights + n * (columns / 4), columns, x + t * columns, x_sums + t, y + t * y_stride + n, y_stride);
  }
}

// One row times `Tokens` activations. A pair of products is at most 2 * 15 * 128 = 3840 in magnitude, so
// eight of them (four blocks) fit in int16.
template <std::size_t Tokens>
void nibble_row(const std::uint8_t* row, std::size_t columns, const std::int8_t* x,
                const std::int32_t* x_sums, std::int32_t* y, std::size_t y_stride) {
  constexpr std::size_t kBlocksPerFold = 4;
  const __m256i fifteen = _mm256_set1_epi8(15), one = _mm256_set1_epi16(1);
  const std::size_t blocks = columns / (2 * kBlockBytes);
  __m256i total[Tokens];
  for (auto& value : total) value = _mm256_setzero_si256();
  for (std::size_t first = 0; first < blocks; first += kBlocksPerFold) {
    const std::size_t last = first + kBlocksPerFold < blocks ? first + kBlocksPerFold : blocks;
    __m256i sum[Tokens];
    for (auto& value : sum) value = _mm256_setzero_si256();
    for (std::size_t block = first; block < last; ++block) {
      const std::uint8_t* address = row + block * kBlockBytes;
      _mm_prefetch(reinterpret_cast<const char*>(address + kAhead), _MM_HINT_T1);
      const __m256i packed = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(address));
      const __m256i low = _mm256_and_si256(packed, fifteen);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(packed, 4), fifteen);
      for (std::size_t t = 0; t < Tokens; ++t) {
        const auto* v = reinterpret_cast<const __m256i*>(x + t * columns + block * 2 * kBlockBytes);
        sum[t] = _mm256_add_epi16(sum[t], _mm256_maddubs_epi16(low, _mm256_loadu_si256(v)));
        sum[t] = _mm256_add_epi16(sum[t], _mm256_maddubs_epi16(high, _mm256_loadu_si256(v + 1)));
      }
    }
    for (std::size_t t = 0; t < Tokens; ++t)
      total[t] = _mm256_add_epi32(total[t], _mm256_madd_epi16(sum[t], one));
  }
  for (std::size_t t = 0; t < Tokens; ++t) y[t * y_stride] = horizontal_sum(total[t]) - 8 * x_sums[t];
}

#include "nibble_gemm.h"

// One row of signs times `Tokens` activations, as row_dots goes: a block's 16 bytes stand in both halves of a
// register, and each half has masks of its own. Bits 0 and 1 (after the shift 4 and 5), times 1 and 2, are
// collected apart from bits 2 and 3, times 4 and 8, which grow fastest, by 2 * (2 * 8 * 128) = 4096 a block:
// seven blocks fit in int16.
template <std::size_t Tokens>
void sign_row(const std::uint8_t* row, std::size_t columns, const std::int8_t* x, const std::int32_t* x_sums,
              std::int32_t* y, std::size_t y_stride) {
  constexpr std::size_t kBlocksPerFold = 7;
  const auto halves = [](__m128i low, __m128i high) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
  };
  const __m256i bits01 = halves(_mm_set1_epi8(1), _mm_set1_epi8(2));
  const __m256i bits23 = _mm256_slli_epi16(bits01, 2), one = _mm256_set1_epi16(1);
  const std::size_t blocks = columns / kBlockWeights;
  __m256i total01[Tokens], total23[Tokens];
  for (std::size_t t = 0; t < Tokens; ++t) total01[t] = total23[t] = _mm256_setzero_si256();
  for (std::size_t first = 0; first < blocks; first += kBlocksPerFold) {
    const std::size_t last = first + kBlocksPerFold < blocks ? first + kBlocksPerFold : blocks;
    __m256i sum01[Tokens], sum23[Tokens];
    for (std::size_t t = 0; t < Tokens; ++t) sum01[t] = sum23[t] = _mm256_setzero_si256();
    for (std::size_t block = first; block < last; ++block) {
      const std::uint8_t* address = row + block * kSignBlockBytes;
      _mm_prefetch(reinterpret_cast<const char*>(address + kAhead), _MM_HINT_T1);
      const __m256i low =
          _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(address)));
      const __m256i high = _mm256_srli_epi16(low, 4);
      const __m256i part0 = _mm256_and_si256(low, bits01), part1 = _mm256_and_si256(low, bits23);
      const __m256i part2 = _mm256_and_si256(high, bits01), part3 = _mm256_and_si256(high, bits23);
      for (std::size_t t = 0; t < Tokens; ++t) {
        const auto* v = reinterpret_cast<const __m256i*>(x + t * columns + block * kBlockWeights);
        sum01[t] = _mm256_add_epi16(sum01[t], _mm256_maddubs_epi16(part0, _mm256_loadu_si256(v)));
        sum23[t] = _mm256_add_epi16(sum23[t], _mm256_maddubs_epi16(part1, _mm256_loadu_si256(v + 1)));
        sum01[t] = _mm256_add_epi16(sum01[t], _mm256_maddubs_epi16(part2, _mm256_loadu_si256(v + 2)));
        sum23[t] = _mm256_add_epi16(sum23[t], _mm256_maddubs_epi16(part3, _mm256_loadu_si256(v + 3)));
      }
    }
    for (std::size_t t = 0; t < Tokens; ++t) {
      total01[t] = _mm256_add_epi32(total01[t], _mm256_madd_epi16(sum01[t], one));
      total23[t] = _mm256_add_epi32(total23[t], _mm256_madd_epi16(sum23[t], one));
    }
  }
  const __m256i shifts = halves(_mm_setzero_si128(), _mm_set1_epi32(1));
  for (std::size_t t = 0; t < Tokens; ++t) {
    const __m256i sum = _mm256_add_epi32(total01[t], _mm256_srai_epi32(total23[t], 2));
    y[t * y_stride] = 2 * horizontal_sum(_mm256_srav_epi32(sum, shifts)) - x_sums[t];
  }
}

#include "sign_gemm.h"

void ternary_rows(const std::uint8_t* weights, const std::uint32_t* rows, std::size_t count,
                  std::size_t columns, const std::int8_t* x, std::int32_t x_sum, std::int32_t* y) {
  for (std::size_t i = 0; i < count; ++i)
    row_dots<1>(weights + rows[i] * (columns / 4), columns, x, &x_sum, y + i, 1);
}

#include "column_fetcher.h"

// Half a line (128 rows) at a time. The bytes of two columns are interleaved, so that vpmaddubsw adds their
// products row by row: at most 2 * 2 * 128 = 512, and a block's 32 pairs (16384) fit in int16.
void ternary_columns(const std::uint8_t* matrix, std::size_t stride, std::size_t chunks, ColumnList list,
                     ColumnList next, std::int32_t* y) {
  const __m256i three = _mm256_set1_epi8(3);
  ColumnFetcher fetcher(matrix, stride, chunks, next);
  for (std::size_t half = 0; half < chunks * kChunkBytes; half += 32) {
    __m256i low[4], high[4];  // a field: rows of bytes 0-7 and 16-23, rows of bytes 8-15 and 24-31
    for (int field = 0; field < 4; ++field) low[field] = high[field] = _mm256_setzero_si256();
    for (std::size_t i = 0; i < list.count; i += 2) {
      fetcher.fetch(1);
      const auto load = [&](std::size_t column) {
        const std::uint8_t* bytes = matrix + list.columns[column] * stride + half;
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
      };
      const __m256i a = load(i), b = load(i + 1);
      std::int16_t pair;
      std::memcpy(&pair, list.x + i, sizeof(pair));
      const __m256i values = _mm256_set1_epi16(pair);
      __m256i even = _mm256_unpacklo_epi8(a, b), odd = _mm256_unpackhi_epi8(a, b);
      for (int field = 0; field < 4; ++field) {
        low[field] =
            _mm256_add_epi16(low[field], _mm256_maddubs_epi16(_mm256_and_si256(even, three), values));
        high[field] =
            _mm256_add_epi16(high[field], _mm256_maddubs_epi16(_mm256_and_si256(odd, three), values));
        even = _mm256_srli_epi16(even, 2);
        odd = _mm256_srli_epi16(odd, 2);
      }
    }
    std::int32_t* rows = y + half / kChunkBytes * kChunkRows + half % kChunkBytes;
    for (std::size_t field = 0; field < 4; ++field) {
      alignas(32) std::int16_t sums[32];
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums), low[field]);
      _mm256_store_si256(reinterpret_cast<__m256i*>(sums + 16), high[field]);
      std::int32_t* out = rows + field * kChunkBytes;
      for (std::size_t j = 0; j < 8; ++j) {
        out[j] += sums[j];
        out[j + 8] += sums[16 + j];
        out[j + 16] += sums[8 + j];
        out[j + 24] += sums[24 + j];
      }
    }
  }
}

#include "table_gemm.h"

#include "sign_table_gemm.h"

#include "small_table_gemm.h"

// A Zen 4 core, 1280 rows of 2560: ternary_gemm 100 GMAC/s, tables 185 for 16 tokens and 217 for 32; they are
// equal at 9 tokens of 16 and, the second time, at 15 of 32.
constexpr std::size_t kFewestMany = 10;
// Signs: sign_gemm 120 GMAC/s, tables 125 for 8 tokens and 246 for 16.
constexpr std::size_t kFewestSigns = 8;

constexpr Kernels avx2_table = with_float_kernels(
    {"avx2", ternary_gemm, ternary_rows, ternary_columns, nibble_gemm, sign_gemm, ternary_gemm_many,
     kFewestMany, sign_gemm_many, kFewestSigns, ternary_gemm_small, kFewestSmall});

}  // namespace

const Kernels avx2_kernels = avx2_table;

}  // namespace bitnet
