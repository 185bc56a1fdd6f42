// Every kernel against the scalar one on this very machine: what `bitnet doctor` and the tests run.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>

#include "kernels.h"
#include "kv_codes.h"
#include "self_test_report.h"

namespace bitnet {
namespace {

constexpr std::size_t kSizes[] = {1, 7, 16, 34, 63, 64, 100, 192, 448, 1000};
constexpr float kPoison = -12345.0f;  // a kernel that leaves an output untouched must not pass

class SelfTest : SelfTestReport {
 public:
  explicit SelfTest(const Kernels& candidate) : candidate_(candidate) {}

  std::vector<SelfTestResult> run() {
    gemm("ternary_gemm", &Kernels::ternary_gemm, 4, 3);
    gemm("nibble_gemm", &Kernels::nibble_gemm, 2, 16);
    gemm("sign_gemm", &Kernels::sign_gemm, 8, 2);
    many_tokens({"ternary_gemm_many", &Kernels::ternary_gemm_many, &Kernels::ternary_gemm, 4, 3});
    many_tokens({"sign_gemm_many", &Kernels::sign_gemm_many, &Kernels::sign_gemm, 8, 2});
    many_tokens({"ternary_gemm_small", &Kernels::ternary_gemm_small, &Kernels::ternary_gemm, 4, 3, kSmallCode,
                 kSmallTokens});
    rows_and_columns();
    quantize();
    rms_norm();
    dequantize();
    gate("relu2_gate", &Kernels::relu2_gate);
    gate("silu_gate", &Kernels::silu_gate);
    dot();
    attention();
    to_f16();
    return results();
  }

 private:
  std::vector<float> normal(std::size_t n, float deviation = 1.0f) {
    std::normal_distribution<float> distribution(0.0f, deviation);
    std::vector<float> values(n);
    for (float& value : values) value = distribution(random_);
    return values;
  }

  static std::vector<std::uint16_t> half(const std::vector<float>& x) {
    std::vector<std::uint16_t> values(x.size());
    scalar_kernels.to_f16(x.data(), x.size(), values.data());
    return values;
  }

  using Gemm = decltype(Kernels::ternary_gemm);

  // `codes_a_byte` codes below `levels` a byte, against the extremes too: where narrow sums overflow first.
  void gemm(const char* name, Gemm Kernels::* kernel, unsigned codes_a_byte, unsigned levels) {
    const unsigned bits = 8 / codes_a_byte;
    const auto byte_of = [&](auto code) {
      unsigned byte = 0;
      for (unsigned i = 0; i < codes_a_byte; ++i) byte |= code() << (bits * i);
      return static_cast<std::uint8_t>(byte);
    };
    // 896 = 7 blocks and 1024 = 8, 1920 = 15 and 2048 = 16: on both sides of where int16 sums are folded.
    for (std::size_t columns : {128, 384, 896, 1024, 1920, 2048}) {
      for (std::size_t tokens : {1, 2, 3, 4, 5, 9}) {
        const std::size_t rows = 11, stride = 13, row_bytes = columns / codes_a_byte;
        std::vector<std::uint8_t> weights(rows * row_bytes);
        for (auto& byte : weights) byte = byte_of([&] { return static_cast<unsigned>(random_() % levels); });
        std::vector<std::int8_t> x(tokens * columns);
        for (auto& value : x) value = static_cast<std::int8_t>(random_() % 256 - 128);
        std::fill_n(weights.begin(), row_bytes, byte_of([&] { return levels - 1; }));
        std::fill_n(x.begin(), columns, std::int8_t{-128});
        std::vector<std::int32_t> sums(tokens, 0);
        for (std::size_t t = 0; t < tokens; ++t)
          for (std::size_t k = 0; k < columns; ++k) sums[t] += x[t * columns + k];
        std::vector<std::int32_t> expected(tokens * stride, -7), found(tokens * stride, -7);
        (scalar_kernels.*kernel)(weights.data(), rows, columns, x.data(), sums.data(), tokens,
                                 expected.data(), stride);
        (candidate_.*kernel)(weights.data(), rows, columns, x.data(), sums.data(), tokens, found.data(),
                             stride);
        compare(std::to_string(columns) + " columns, " + std::to_string(tokens) + " tokens", expected, found);
      }
    }
    finish(name);
  }

  // A table kernel and its plain one; `codes_a_byte` codes below `levels` a byte, inputs of at most `largest`
  // in magnitude, up to `most` tokens.
  struct ManyTokens {
    const char* name;
    decltype(Kernels::ternary_gemm_many) Kernels::* kernel;
    Gemm Kernels::* plain;
    unsigned codes_a_byte, levels;
    int largest = 127;
    std::size_t most = kTableTokens;
  };

  void many_tokens(const ManyTokens& test) {
    if (candidate_.*test.kernel == nullptr) return;
    const auto byte_of = [&](auto code) {
      unsigned byte = 0;
      for (unsigned i = 0; i < test.codes_a_byte; ++i) byte |= code() << (8 / test.codes_a_byte * i);
      return static_cast<std::uint8_t>(byte);
    };
    const auto random_input = [&] {
      return static_cast<std::int8_t>(static_cast<int>(random_() % (2 * test.largest + 1)) - test.largest);
    };
    // 256 columns make a fold of int16 sums, 128 half of one, and 2560 one of small inputs; 8 rows and 8
    // tokens are a square of the output.
    for (std::size_t columns : {128, 256, 384, 2560, 2816}) {
      for (std::size_t tokens :
           {std::size_t{1}, std::size_t{7}, test.most / 2, test.most / 2 + 1, test.most - 1, test.most}) {
        const std::size_t rows = 21, stride = 23, row_bytes = columns / test.codes_a_byte;
        std::vector<std::uint8_t> weights(rows * row_bytes);
        for (auto& byte : weights)
          byte = byte_of([&] { return static_cast<unsigned>(random_() % test.levels); });
        std::vector<std::int8_t> x(tokens * columns);
        for (auto& value : x) value = random_input();
        // All +1, then all -1, against all the largest input: the largest sums.
        std::fill_n(weights.begin(), row_bytes, byte_of([&] { return test.levels - 1; }));
        std::fill_n(weights.begin() + static_cast<std::ptrdiff_t>(row_bytes), row_bytes, std::uint8_t{0});
        std::fill_n(x.begin(), columns, static_cast<std::int8_t>(test.largest));
        std::vector<std::int32_t> sums(tokens, 0);
        for (std::size_t t = 0; t < tokens; ++t)
          for (std::size_t k = 0; k < columns; ++k) sums[t] += x[t * columns + k];
        std::vector<std::int32_t> expected(tokens * stride, -7), found(tokens * stride, -7);
        (scalar_kernels.*test.plain)(weights.data(), rows, columns, x.data(), sums.data(), tokens,
                                     expected.data(), stride);
        std::vector<std::uint8_t> memory(table_scratch_bytes(rows, test.most) + 64, 0x5a);
        std::size_t room = memory.size();
        void* scratch = memory.data();
        std::align(64, table_scratch_bytes(rows, test.most), scratch, room);
        (candidate_.*test.kernel)(weights.data(), rows, columns, x.data(), tokens, scratch, found.data(),
                                  stride);
        compare(std::to_string(columns) + " columns, " + std::to_string(tokens) + " tokens", expected, found);
      }
    }
    finish(test.name);
  }

  void rows_and_columns() {
    for (std::size_t columns : {128, 1024}) {
      std::vector<std::uint8_t> weights(40 * columns / 4), random_codes(columns * kChunkBytes);
      for (auto* bytes : {&weights, &random_codes})
        for (auto& byte : *bytes)
          byte = static_cast<std::uint8_t>(random_() % 3 | random_() % 3 << 2 | random_() % 3 << 4 |
                                           random_() % 3 << 6);
      std::vector<std::int8_t> x(columns);
      for (auto& value : x) value = static_cast<std::int8_t>(random_() % 256 - 128);
      std::vector<std::uint32_t> rows{39, 0, 7, 8, 20};
      std::vector<std::int32_t> expected(rows.size(), -7), found(rows.size(), -9);
      scalar_kernels.ternary_rows(weights.data(), rows.data(), rows.size(), columns, x.data(), 17,
                                  expected.data());
      candidate_.ternary_rows(weights.data(), rows.data(), rows.size(), columns, x.data(), 17, found.data());
      compare("listed rows", expected, found);
      const std::size_t chunks = 3, stride = 4 * kChunkBytes;  // a matrix of four chunks, from the second on
      for (std::size_t count : {0, 4, 60, 64}) {
        std::vector<std::uint32_t> list(count), next{1, 0, 9, 9};
        for (auto& column : list) column = static_cast<std::uint32_t>(random_() % (columns / 4 - 1));
        std::vector<std::int8_t> values(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(count));
        std::vector<std::uint8_t> codes = random_codes;
        // The second time all +1 times all -128: the largest sums.
        for (int extreme = 0; extreme < 2; ++extreme) {
          std::vector<std::int32_t> expected_rows(chunks * kChunkRows, -7),
              found_rows(chunks * kChunkRows, -7);
          const ColumnList now{list.data(), values.data(), count}, later{next.data(), x.data(), 4};
          const std::uint8_t* matrix = codes.data() + kChunkBytes;
          scalar_kernels.ternary_columns(matrix, stride, chunks, now, later, expected_rows.data());
          candidate_.ternary_columns(matrix, stride, chunks, now, later, found_rows.data());
          compare(std::to_string(count) + " columns", expected_rows, found_rows);
          std::fill(codes.begin(), codes.end(), std::uint8_t{0xaa});
          std::fill(values.begin(), values.end(), std::int8_t{-128});
        }
      }
    }
    finish("ternary_rows, ternary_columns");
  }

  void quantize() {
    for (std::size_t n : kSizes) {
      for (float deviation : {1e-8f, 1.0f, 1e30f}) {
        const std::vector<float> x = normal(n, deviation);
        quantize_one(x, "deviation " + std::to_string(deviation));
      }
      // Ties: 127 makes the scale 1, so halves stay halves and must go to the even code.
      std::vector<float> ties(n, 127.0f);
      for (std::size_t i = 1; i < n; ++i) ties[i] = static_cast<float>(random_() % 253) - 126.5f;
      quantize_one(ties, "ties");
    }
    finish("quantize");
  }

  void quantize_one(const std::vector<float>& x, const std::string& what) {
    const std::size_t n = x.size(), padded = padded_columns(n);
    std::vector<std::int8_t> expected(padded, 99), found(padded, 99);
    std::vector<float> scales(2, kPoison);
    std::vector<std::int32_t> sums(2, -7);
    scalar_kernels.quantize(x.data(), n, padded, expected.data(), &scales[0], &sums[0]);
    candidate_.quantize(x.data(), n, padded, found.data(), &scales[1], &sums[1]);
    compare(std::to_string(n) + " values, " + what, expected, found);
    compare("scale of " + what, std::vector<float>{scales[0]}, std::vector<float>{scales[1]});
    compare("sum of " + what, std::vector<std::int32_t>{sums[0]}, std::vector<std::int32_t>{sums[1]});
  }

  void rms_norm() {
    for (std::size_t n : kSizes) {
      const std::vector<float> x = normal(n), weight = normal(n);
      std::vector<float> expected(n, kPoison), found(n, kPoison);
      scalar_kernels.rms_norm(x.data(), weight.data(), n, 1e-5f, expected.data());
      candidate_.rms_norm(x.data(), weight.data(), n, 1e-5f, found.data());
      compare(std::to_string(n) + " values", expected, found);
    }
    finish("rms_norm");
  }

  void dequantize() {
    for (std::size_t n : kSizes) {
      std::vector<std::int32_t> x(n);
      for (auto& value : x) value = static_cast<std::int32_t>(random_());  // beyond 2^24: rounding counts
      const std::vector<float> bias = normal(n);
      std::vector<float> expected(n, kPoison), found(n, kPoison);
      for (const float* b : {static_cast<const float*>(nullptr), bias.data()}) {
        scalar_kernels.dequantize(x.data(), n, 0.37f, b, expected.data());
        candidate_.dequantize(x.data(), n, 0.37f, b, found.data());
        compare(std::to_string(n) + " values", expected, found);
      }
    }
    finish("dequantize");
  }

  void gate(const char* name, void (*Kernels::*kernel)(const float*, const float*, std::size_t, float*)) {
    for (std::size_t n : kSizes) {
      const std::vector<float> gates = normal(n, 30.0f), up = normal(n);
      std::vector<float> expected(n, kPoison), found(n, kPoison);
      (scalar_kernels.*kernel)(gates.data(), up.data(), n, expected.data());
      (candidate_.*kernel)(gates.data(), up.data(), n, found.data());
      compare(std::to_string(n) + " values", expected, found);
    }
    finish(name);
  }

  void dot() {
    for (std::size_t n : kSizes) {
      const std::vector<float> x = normal(n), row = normal(n);
      std::vector<std::uint16_t> bits(n);
      for (std::size_t i = 0; i < n; ++i) {
        std::uint32_t word;
        std::memcpy(&word, &row[i], sizeof(word));
        bits[i] = static_cast<std::uint16_t>(word >> 16);
      }
      compare(std::to_string(n) + " float32",
              std::vector<float>{scalar_kernels.dot_f32(x.data(), row.data(), n)},
              std::vector<float>{candidate_.dot_f32(x.data(), row.data(), n)});
      compare(std::to_string(n) + " bfloat16",
              std::vector<float>{scalar_kernels.dot_bf16(x.data(), bits.data(), n)},
              std::vector<float>{candidate_.dot_bf16(x.data(), bits.data(), n)});
    }
    finish("dot");
  }

  // A tile of the candidate against the scalar kernel run on one token and head at a time: company must not
  // matter either. Positions beyond the last are NaN, as whatever an earlier sequence left there may be.
  void attention() {
    for (std::size_t head_dim : {2, 32, 34, 64, 128}) {
      for (std::size_t tokens : {1, 3, 17}) {
        for (std::size_t keys : {1, 3, 17, 63, 64, 82, 200}) {
          if (keys < tokens || (keys - tokens) / kKeyBlock != (keys - 1) / kKeyBlock) continue;
          const std::size_t heads = keys % 3 + 1, blocks = (keys + kKeyBlock - 1) / kKeyBlock;
          const AttentionTile tile{tokens, heads, head_dim, heads * head_dim + 5, keys, keys, 0.3f};
          std::vector<float> k = normal(blocks * kKeyBlock * head_dim);
          std::vector<float> v = normal(blocks * kKeyBlock * padded_head(head_dim));
          poison(k, v, tile);
          const std::string what = std::to_string(tokens) + " tokens, " + std::to_string(keys) + " keys of " +
                                   std::to_string(head_dim);
          attend_tile(what + ", float32", tile, k, v, &Kernels::attention_f32);
          attend_tile(what + ", float16", tile, half(k), half(v), &Kernels::attention_f16);
          for (std::size_t key : {std::size_t{0}, std::min<std::size_t>(15, keys - tokens)}) {
            std::vector<float> spoilt = k;
            spoilt[key] = NAN;  // of the first component
            attend_tile(what + ", one NaN", tile, spoilt, v, &Kernels::attention_f32, true);
          }
        }
      }
    }
    finish("attention");
  }

  static void poison(std::vector<float>& k, std::vector<float>& v, const AttentionTile& tile) {
    const std::size_t width = padded_head(tile.head_dim);
    for (std::size_t j = tile.keys; j % kKeyBlock != 0; ++j) {
      const std::size_t block = j / kKeyBlock, i = j % kKeyBlock;
      for (std::size_t d = 0; d < tile.head_dim; ++d)
        k[(block * kKeyBlock + i / kLanes * kLanes) * tile.head_dim + d * kLanes + i % kLanes] = NAN;
      for (std::size_t d = 0; d < width; ++d)
        v[block * kKeyBlock * width + (d / kLanes * kKeyBlock + i) * kLanes + d % kLanes] = NAN;
    }
  }

  template <class T>
  void attend_tile(const std::string& what, const AttentionTile& tile, const std::vector<T>& k,
                   const std::vector<T>& v,
                   void (*Kernels::*kernel)(const AttentionTile&, const float*, const T*, const T*, float*,
                                            float*),
                   bool all_see_nan = false) {
    const std::vector<float> q = normal(tile.tokens * tile.stride, 3.0f);
    std::vector<float> expected(q.size(), kPoison), found = expected;
    for (std::size_t t = 0; t < tile.tokens; ++t) {
      for (std::size_t h = 0; h < tile.heads; ++h) {
        AttentionTile one = tile;
        one.tokens = one.heads = 1;
        one.keys = one.end = tile.keys - (tile.tokens - 1 - t);
        const std::size_t at = t * tile.stride + h * tile.head_dim;
        run_attention(scalar_kernels, kernel, one, &q[at], k, v, &expected[at]);
      }
    }
    run_attention(candidate_, kernel, tile, q.data(), k, v, found.data());
    if (all_see_nan) {
      compare(what + " is lost", std::isnan(expected[0]) && std::isnan(expected[tile.head_dim - 1]));
      for (std::vector<float>* values : {&expected, &found})
        std::replace_if(
            values->begin(), values->end(), [](float x) { return std::isnan(x); }, NAN);  // its sign is free
    }
    compare(what, expected, found);
  }

  // The first block and the others apart, then merged, as the model treats long contexts.
  template <class T, class Kernel>
  static void run_attention(const Kernels& kernels, Kernel kernel, const AttentionTile& tile, const float* q,
                            const std::vector<T>& k, const std::vector<T>& v, float* out) {
    std::vector<float> scratch(tile.scratch_size(), kPoison), partial(tile.partial_size(), kPoison);
    std::vector<float> later = partial;
    AttentionTile part = tile;
    part.end = std::min(kKeyBlock, tile.end);
    (kernels.*kernel)(part, q, k.data(), v.data(), scratch.data(), partial.data());
    if (part.end < tile.end) {
      part.keys = part.end = tile.keys - kKeyBlock;
      (kernels.*kernel)(part, q, k.data() + kKeyBlock * tile.head_dim,
                        v.data() + kKeyBlock * padded_head(tile.head_dim), scratch.data(), later.data());
      kernels.attention_merge(tile, later.data(), partial.data());
    }
    kernels.attention_finish(tile, partial.data(), out);
  }

  void to_f16() {
    std::vector<float> x = normal(5000);
    for (float special :
         {0.0f, -0.0f, 65504.0f, 65519.99f, 65520.0f, 1e30f, 5.96e-8f, 2.98e-8f, 6.1e-5f, -6.09e-5f})
      x.push_back(special);
    for (std::size_t i = 0; i < 1000; ++i) x.push_back(x[i] * 1e-6f);  // subnormal halves
    std::vector<std::uint16_t> expected(x.size()), found(x.size(), 0x1234);
    scalar_kernels.to_f16(x.data(), x.size(), expected.data());
    candidate_.to_f16(x.data(), x.size(), found.data());
    compare("conversion", expected, found);
    finish("to_f16");
  }

  const Kernels& candidate_;
  std::mt19937 random_{158};
};

}  // namespace

std::vector<SelfTestResult> self_test(const Kernels& candidate) {
  std::vector<SelfTestResult> results = SelfTest(candidate).run();
  for (SelfTestResult& result : kv_codes_self_test(candidate)) results.push_back(std::move(result));
  return results;
}

}  // namespace bitnet
