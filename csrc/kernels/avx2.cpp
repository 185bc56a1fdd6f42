// AVX2 with FMA and F16C: every x86 CPU since 2013 (Haswell, Zen).
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels.h"

namespace bitnet {
namespace {

struct f32x16 {
  __m256 low, high;

  static f32x16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
  static f32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static f32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static f32x16 load_bf16(const std::uint16_t* p) { return {widen_bf16(p), widen_bf16(p + 8)}; }
  static f32x16 load_f16(const std::uint16_t* p) {
    return {_mm256_cvtph_ps(load128(p)), _mm256_cvtph_ps(load128(p + 8))};
  }
  static f32x16 load_i32(const std::int32_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))),
            _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8)))};
  }
  void store(float* p) const {
    _mm256_storeu_ps(p, low);
    _mm256_storeu_ps(p + 8, high);
  }
  void store_i8(std::int8_t* p) const {
    const __m256i pairs = _mm256_packs_epi32(_mm256_cvtps_epi32(low), _mm256_cvtps_epi32(high));
    const __m256i ordered = _mm256_permute4x64_epi64(pairs, _MM_SHUFFLE(3, 1, 2, 0));
    const __m128i bytes =
        _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  }
  void store_f16(std::uint16_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT));
  }
  f32x16 abs() const {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, low), _mm256_andnot_ps(sign, high)};
  }
  f32x16 round() const {
    constexpr int mode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(low, mode), _mm256_round_ps(high, mode)};
  }
  f32x16 pow2() const { return {exponent(low), exponent(high)}; }
  float sum() const {
    const __m256 eight = _mm256_add_ps(low, high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  float largest() const {
    const __m256 eight = _mm256_max_ps(low, high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
  }

 private:
  static __m128i load128(const std::uint16_t* p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  }
  static __m256 widen_bf16(const std::uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(p)), 16));
  }
  static __m256 exponent(__m256 n) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  }
};

f32x16 operator+(f32x16 a, f32x16 b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
f32x16 operator-(f32x16 a, f32x16 b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
f32x16 operator*(f32x16 a, f32x16 b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
f32x16 operator/(f32x16 a, f32x16 b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
f32x16 max(f32x16 a, f32x16 b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}

#include "float_kernels.h"

std::int32_t horizontal_sum(__m256i v) {
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, _MM_SHUFFLE(1, 0, 3, 2)));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, _MM_SHUFFLE(2, 3, 0, 1)));
  return _mm_cvtsi128_si32(s);
}

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

void nibble_gemm(const std::uint8_t* weights, std::size_t rows, std::size_t columns, const std::int8_t* x,
                 const std::int32_t* x_sums, std::size_t tokens, std::int32_t* y, std::size_t y_stride) {
  for (std::size_t n = 0; n < rows; ++n) {
    const std::uint8_t* row = weights + n * (columns / 2);
    std::size_t t = 0;
    for (; t + 4 <= tokens; t += 4)
      nibble_row<4>(row, columns, x + t * columns, x_sums + t, y + t * y_stride + n, y_stride);
    for (; t < tokens; ++t)
      nibble_row<1>(row, columns, x + t * columns, x_sums + t, y + t * y_stride + n, y_stride);
  }
}

void ternary_rows(const std::uint8_t* weights, const std::uint32_t* rows, std::size_t count,
                  std::size_t columns, const std::int8_t* x, std::int32_t x_sum, std::int32_t* y) {
  for (std::size_t i = 0; i < count; ++i)
    row_dots<1>(weights + rows[i] * (columns / 4), columns, x, &x_sum, y + i, 1);
}

// Fetches the lines of the columns to come, a few at a time while the present ones are computed.
class ColumnFetcher {
 public:
  ColumnFetcher(const std::uint8_t* matrix, std::size_t stride, std::size_t chunks, ColumnList next)
      : matrix_(matrix), stride_(stride), chunks_(chunks), next_(next) {}

  void fetch(std::size_t lines) {
    for (; lines > 0 && column_ < next_.count; --lines) {
      const std::uint8_t* line = matrix_ + next_.columns[column_] * stride_ + chunk_ * kChunkBytes;
      _mm_prefetch(reinterpret_cast<const char*>(line), _MM_HINT_T0);
      if (++chunk_ == chunks_) {
        chunk_ = 0;
        ++column_;
      }
    }
  }

 private:
  const std::uint8_t* matrix_;
  std::size_t stride_, chunks_, column_ = 0, chunk_ = 0;
  ColumnList next_;
};

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

// A Zen 4 core, 1280 rows of 2560: ternary_gemm 100 GMAC/s, tables 185 for 16 tokens and 217 for 32; they are
// equal at 9 tokens of 16 and, the second time, at 15 of 32.
constexpr std::size_t kFewestMany = 10;

constexpr Kernels avx2_table = with_float_kernels(
    {"avx2", ternary_gemm, ternary_rows, ternary_columns, nibble_gemm, ternary_gemm_many, kFewestMany});

}  // namespace

const Kernels avx2_kernels = avx2_table;

}  // namespace bitnet
