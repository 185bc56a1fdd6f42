// The contract every instruction set implements, and the way to choose one.
//
// Integers are exact. Floating-point kernels are defined lane by lane (see float_kernels.h), with fused
// multiply-adds written out and contraction switched off, so every ISA returns the same bits there too.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace bitnet {

// Ternary matrices are stored in blocks of 128 weights = 32 bytes along a row: byte j of a block holds
// weights j, 32+j, 64+j, 96+j, two bits each, low bits first; code = value + 1. One 32-byte load then
// yields four vectors of 32 consecutive weights by masking and a single shift.
// Rows are padded to whole blocks with code 1 (value 0); activations are padded with 0.
constexpr std::size_t kBlockWeights = 128;
constexpr std::size_t kBlockBytes = 32;

// Binary matrices, -1 and +1, are stored in the same blocks of 128 weights, 16 bytes: bit f of byte j holds
// weight 16 f + j, 1 is +1. Read into every part of a register, those bytes lie over the activations as they
// are, and a mask for each part picks its bit.
constexpr std::size_t kSignBlockBytes = 16;

// A matrix that is read by column holds whole columns, one behind the other, so that the few that are live
// come in runs of cache lines. 256 rows (a chunk) are one line: byte j holds rows j, 64+j, 128+j, 192+j, low
// bits first.
constexpr std::size_t kChunkRows = 256;
constexpr std::size_t kChunkBytes = kChunkRows / 4;
constexpr std::size_t kColumnBlock = 64;  // columns a call: int16 sums hold them, and 40 KB of 2B4T's fit L2
constexpr std::size_t kColumnGroup = 4;

// Live columns of one token: numbers and int8 inputs, padded to whole groups with input 0.
struct ColumnList {
  const std::uint32_t* columns;
  const std::int8_t* x;
  std::size_t count;
};

constexpr std::size_t padded_columns(std::size_t columns) {
  return (columns + kBlockWeights - 1) / kBlockWeights * kBlockWeights;
}

// A call of ternary_gemm_many takes at most kTableTokens tokens and needs working memory: eight tables of
// 256 entries (moved apart by up to 64), and int16 and int32 sums.
constexpr std::size_t kTableTokens = 32;
constexpr std::size_t kTableBytes = (8 * 256 + 64) * kTableTokens * sizeof(std::int16_t);

constexpr std::size_t table_scratch_bytes(std::size_t rows, std::size_t tokens = kTableTokens) {
  return kTableBytes + rows * tokens * (sizeof(std::int16_t) + sizeof(std::int32_t));
}

// ternary_gemm_small takes codes of at most kSmallCode in magnitude, which the 4-bit quantisers make (int4
// -8..7, fp4 -12..12), and kSmallTokens tokens a call: in as much cache, tables whose entries are bytes.
constexpr int kSmallCode = 12;
constexpr std::size_t kSmallTokens = 64;

constexpr std::size_t kLanes = 16;  // of every float kernel, whatever the registers' width

// Attention reads keys and values in blocks of 64 positions of one key/value head, at absolute positions
// 0, 64, 128...: 64 scores are four vectors, enough to spread a block's fixed cost, and a block of float16
// keys of 128 is half of a 32 KB L1. Within a block
//   keys    [4][head_dim][16]       sixteen positions side by side, so that a vector holds sixteen keys
//   values  [width / 16][64][16]    sixteen components of v side by side; width = padded_head(head_dim)
// A block's unused positions may hold anything: they are never part of a result.
constexpr std::size_t kKeyBlock = 64;

constexpr std::size_t padded_head(std::size_t head_dim) {
  return (head_dim + kLanes - 1) / kLanes * kLanes;
}

// Queries that attend to the same keys together: some tokens of a sequence at consecutive positions within
// one block of 64, times the query heads that share a key/value head. Row t * heads + h of a tile is head h
// of token t.
struct AttentionTile {
  std::size_t tokens, heads, head_dim;
  std::size_t stride;  // floats from a token to the next in q and out; a token's heads are contiguous
  std::size_t keys;    // positions the last token sees; each earlier token sees one less
  std::size_t end;     // attend to positions before this one: keys, or a multiple of 64 below
  float scale;

  // Floats of sixteen keys or components in float32; of working memory: those, scores, queries; and of a
  // partial result: a row's width sums, its maximum, its divisor.
  constexpr std::size_t panel_size() const { return kLanes * (head_dim > kKeyBlock ? head_dim : kKeyBlock); }
  constexpr std::size_t scratch_size() const {
    return panel_size() + tokens * heads * (kKeyBlock + head_dim);
  }
  constexpr std::size_t partial_size() const { return tokens * heads * (padded_head(head_dim) + kLanes); }
};

// Blocks of 64 positions in `bits` bits, one behind the other (kv_codes.h).
struct KvCodes {
  const std::uint32_t* blocks;
  std::size_t bits;
  // Of 3 bits, where the first block begins the sequence: the 4-bit codes of its first position, two a byte,
  // low half first: padded_head(head_dim) of the key, then as many of the value. Else null.
  const std::uint8_t* first;
};

struct Kernels {
  const char* name;

  // y[t][n] = sum over k of value[n][k] * x[t][k], exact in int32 (|y| <= 128 * columns < 2^31 for
  // columns < 2^24).
  //   weights  rows x columns/4 bytes, blocked as above; columns is a multiple of 128
  //   x        int8 [tokens][columns];  x_sums  int32 [tokens], the sum of each row of x
  //   y        int32, element (t, n) at y[t * y_stride + n]
  void (*ternary_gemm)(const std::uint8_t* weights, std::size_t rows, std::size_t columns,
                       const std::int8_t* x, const std::int32_t* x_sums, std::size_t tokens, std::int32_t* y,
                       std::size_t y_stride);

  // The same for many rows and tokens at a time; null where ternary_gemm is all there is. It is the faster
  // one for calls of at least `fewest_many` tokens and some hundred rows.
  //   x        int8 [tokens][columns], -127..127: quantize makes no -128, as |x| * scale < 127.5
  //   tokens   1..kTableTokens; time depends on rows and on whether tokens > kTableTokens / 2
  //   scratch  table_scratch_bytes(rows), aligned to 64 bytes; nothing is expected in it
  void (*ternary_gemm_many)(const std::uint8_t* weights, std::size_t rows, std::size_t columns,
                            const std::int8_t* x, std::size_t tokens, void* scratch, std::int32_t* y,
                            std::size_t y_stride);
  std::size_t fewest_many;

  // The same as ternary_gemm_many, or null; the faster one for calls of at least `fewest_small` tokens.
  //   x        int8 [tokens][columns], -kSmallCode..kSmallCode
  //   tokens   1..kSmallTokens; time depends on rows and on whether tokens > kSmallTokens / 2
  //   scratch  table_scratch_bytes(rows, kSmallTokens)
  decltype(ternary_gemm_many) ternary_gemm_small;
  std::size_t fewest_small;

  // The same for one token and the `count` rows listed: y[i] = sum over k of value[rows[i]][k] * x[k].
  void (*ternary_rows)(const std::uint8_t* weights, const std::uint32_t* rows, std::size_t count,
                       std::size_t columns, const std::int8_t* x, std::int32_t x_sum, std::int32_t* y);

  // The same from some columns, at most kColumnBlock and a multiple of kColumnGroup of them:
  // y[n] += sum over i of code[n][columns[i]] * x[i], codes being value + 1.
  //   matrix  the first chunk of column 0; columns are `stride` bytes apart
  //   y       int32 [chunks * 256]
  //   next    the columns of the call to come, fetched meanwhile (may be empty)
  void (*ternary_columns)(const std::uint8_t* matrix, std::size_t stride, std::size_t chunks, ColumnList list,
                          ColumnList next, std::int32_t* y);

  // The same with 4-bit codes 0..15 of value code - 8: y[t][n] = sum over k of (code[n][k] - 8) * x[t][k].
  //   weights  rows x columns/2 bytes; of each 64 weights, byte j holds weight j in its low and weight
  //            32+j in its high half. |y| <= 8 * 128 * columns < 2^31 for columns < 2^21
  void (*nibble_gemm)(const std::uint8_t* weights, std::size_t rows, std::size_t columns,
                      const std::int8_t* x, const std::int32_t* x_sums, std::size_t tokens, std::int32_t* y,
                      std::size_t y_stride);

  // The same with one bit a weight: y[t][n] = sum over k of +x[t][k] where the bit is 1, -x[t][k] where it is
  // 0. Padding bits may be anything.
  //   weights  rows x columns/8 bytes, blocked as above. A part's sums are collected at up to 128 times their
  //            value, which int32 holds for columns < 2^22
  void (*sign_gemm)(const std::uint8_t* weights, std::size_t rows, std::size_t columns, const std::int8_t* x,
                    const std::int32_t* x_sums, std::size_t tokens, std::int32_t* y, std::size_t y_stride);

  // The same for many rows and tokens at a time, as ternary_gemm_many is to ternary_gemm, with its limits and
  // scratch; the faster one for calls of at least `fewest_signs` tokens.
  void (*sign_gemm_many)(const std::uint8_t* weights, std::size_t rows, std::size_t columns,
                         const std::int8_t* x, std::size_t tokens, void* scratch, std::int32_t* y,
                         std::size_t y_stride);
  std::size_t fewest_signs;

  // scale = 127 / max(max|x|, 1e-5); codes = clamp(round_half_even(x * scale), -128, 127); codes[n..padded)
  // = 0; sum = sum of codes. An input that is not finite gives scale NaN and zero codes, so the NaN
  // reaches the logits instead of turning into plausible integers.
  void (*quantize)(const float* x, std::size_t n, std::size_t padded, std::int8_t* codes, float* scale,
                   std::int32_t* sum);

  // y = x / sqrt(mean(x^2) + eps) * weight; y may be x.
  void (*rms_norm)(const float* x, const float* weight, std::size_t n, float eps, float* y);

  // y = x * factor (+ bias unless null).
  void (*dequantize)(const std::int32_t* x, std::size_t n, float factor, const float* bias, float* y);

  // y = relu(gate)^2 * up and y = silu(gate) * up; y may be gate.
  void (*relu2_gate)(const float* gate, const float* up, std::size_t n, float* y);
  void (*silu_gate)(const float* gate, const float* up, std::size_t n, float* y);

  // The dot product of x with one row of the output head.
  float (*dot_bf16)(const float* x, const std::uint16_t* row, std::size_t n);
  float (*dot_f32)(const float* x, const float* row, std::size_t n);

  // softmax(q . k * scale) v for a tile, over blocks of 64 positions with a running maximum, so memory does
  // not grow with the context. A row's result does not depend on the tile it is in: score = the products of
  // q and k summed from component 0 up; output = the products of weight and v summed from position 0 up.
  // What comes out is partial: two partial results of adjoining positions are merged, and the last is
  // finished, which divides.
  //   q [tokens][stride] float32; k, v blocks as above, float16 bits or float32
  void (*attention_f16)(const AttentionTile& tile, const float* q, const std::uint16_t* k,
                        const std::uint16_t* v, float* scratch, float* partial);
  void (*attention_f32)(const AttentionTile& tile, const float* q, const float* k, const float* v,
                        float* scratch, float* partial);
  // The same of quantised keys and values: restored to float32 they give what attention_f32 gives.
  void (*attention_codes)(const AttentionTile& tile, const float* q, const KvCodes& codes, float* scratch,
                          float* partial);
  // partial = partial and the positions after it.
  void (*attention_merge)(const AttentionTile& tile, const float* later, float* partial);
  // out [tokens][stride]
  void (*attention_finish)(const AttentionTile& tile, const float* partial, float* out);

  // One key or value of a head to codes 0..2^bits-1, bits = 3, 4 or 8, and float16 bits of its low and high
  // end, as quantize/kv_cache.py defines them.
  void (*quantize_head)(const float* x, std::size_t n, std::size_t bits, std::uint8_t* codes,
                        std::uint16_t* range);

  // IEEE half precision, round half to even.
  void (*to_f16)(const float* x, std::size_t n, std::uint16_t* y);
};

// Compiled in, best first; the last one is `scalar`.
std::vector<const Kernels*> compiled_kernels();
// Those this CPU can run, best first.
std::vector<const Kernels*> supported_kernels();
// By name; an empty name means the environment variable BITNET_ISA, and the best where that is unset.
// Throws std::invalid_argument, listing the choices, for a name that is unknown or that this CPU lacks.
const Kernels& select_kernels(const std::string& name);

struct SelfTestResult {
  std::string kernel;
  bool passed;
  std::string detail;
};
// Compares every kernel of `candidate` with the scalar one, bit for bit, on odd shapes and edge values.
std::vector<SelfTestResult> self_test(const Kernels& candidate);

extern const Kernels scalar_kernels;
extern const Kernels avx2_kernels;
extern const Kernels avx_vnni_kernels;
extern const Kernels avx512_vnni_kernels;
extern const Kernels neon_kernels;
extern const Kernels neon_dotprod_kernels;

}  // namespace bitnet
