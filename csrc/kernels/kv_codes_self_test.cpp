// The quantiser of keys and values against the scalar one, and attention over codes against attention over
// what plain code restores from them, bit for bit.
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>

#include "kv_codes.h"
#include "self_test_report.h"

namespace bitnet {
namespace {

constexpr float kPoison = -12345.0f;  // a kernel that leaves an output untouched must not pass

class KvCodesTest : SelfTestReport {
 public:
  explicit KvCodesTest(const Kernels& candidate) : candidate_(candidate) {}

  std::vector<SelfTestResult> run() {
    for (std::size_t bits : {3, 4, 8})
      for (std::size_t n : {2, 15, 16, 34, 64, 128, 130}) quantize(n, bits);
    finish("quantize_head");
    for (std::size_t bits : {3, 4, 8})
      for (std::size_t head_dim : {2, 34, 64, 128})
        for (std::size_t tokens : {1, 17})
          for (std::size_t keys : {1, 17, 63, 82, 129})
            if (keys >= tokens && (keys - tokens) / kKeyBlock == (keys - 1) / kKeyBlock)
              attend({tokens, 1 + keys % 3, head_dim, 3 * head_dim + 1, keys, keys, 0.3f}, bits);
    finish("attention_codes");
    return results();
  }

 private:
  std::vector<float> normal(std::size_t n, float deviation) {
    std::normal_distribution<float> distribution(0.0f, 1.0f);
    std::vector<float> values(n);
    for (float& value : values) value = distribution(random_) * deviation;
    return values;
  }

  void quantize(std::size_t n, std::size_t bits) {
    const std::string what = std::to_string(n) + " values, " + std::to_string(bits) + " bits";
    for (float deviation : {0.0f, 1e-7f, 1e-3f, 1.0f, 1e5f, 1e30f}) {
      std::vector<float> x = normal(n, deviation);
      for (float special : {x[0], -0.0f, 65519.0f, std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::quiet_NaN()}) {
        x[n - 1] = special;
        std::vector<std::uint8_t> expected(n, 99), found(n, 98);
        std::vector<std::uint16_t> range(2, 7), found_range(2, 8);
        scalar_kernels.quantize_head(x.data(), n, bits, expected.data(), range.data());
        candidate_.quantize_head(x.data(), n, bits, found.data(), found_range.data());
        compare(what, expected, found);
        compare("range of " + what, range, found_range);
      }
    }
  }

  // Random codes and ranges, with 3 bits also behind a first position of 4.
  void attend(const AttentionTile& tile, std::size_t bits) {
    const std::size_t blocks = (tile.keys + kKeyBlock - 1) / kKeyBlock,
                      words = KvBlock{bits, tile.head_dim}.words();
    std::vector<std::uint32_t> codes(blocks * words);
    for (auto& word : codes) word = static_cast<std::uint32_t>(random_());
    std::vector<std::uint8_t> first(padded_head(tile.head_dim));
    for (auto& byte : first) byte = static_cast<std::uint8_t>(random_());
    for (std::size_t block = 0; block < blocks; ++block) {
      const std::vector<float> ends = normal(4 * kKeyBlock, 1.0f);
      std::vector<std::uint16_t> halves(ends.size());
      scalar_kernels.to_f16(ends.data(), ends.size(), halves.data());
      std::memcpy(&codes[block * words + KvBlock{bits, tile.head_dim}.ranges()], halves.data(),
                  halves.size() * sizeof(halves[0]));
    }
    compare_attention(tile, {codes.data(), bits, nullptr});
    if (bits == 3) compare_attention(tile, {codes.data(), bits, first.data()});
  }

  void compare_attention(const AttentionTile& tile, const KvCodes& codes) {
    const std::size_t positions = (tile.keys + kKeyBlock - 1) / kKeyBlock * kKeyBlock;
    std::vector<float> k(positions * tile.head_dim, NAN), v(positions * padded_head(tile.head_dim), NAN);
    for (std::size_t position = 0; position < tile.keys; ++position)
      for (std::size_t d = 0; d < tile.head_dim; ++d) restore(tile.head_dim, codes, position, d, k, v);
    const std::vector<float> q = normal(tile.tokens * tile.stride, 3.0f);
    std::vector<float> scratch(tile.scratch_size(), kPoison), partial(tile.partial_size(), kPoison);
    std::vector<float> expected(q.size(), kPoison), found = expected;
    scalar_kernels.attention_f32(tile, q.data(), k.data(), v.data(), scratch.data(), partial.data());
    scalar_kernels.attention_finish(tile, partial.data(), expected.data());
    candidate_.attention_codes(tile, q.data(), codes, scratch.data(), partial.data());
    scalar_kernels.attention_finish(tile, partial.data(), found.data());
    compare(std::to_string(codes.bits) + " bits, " + std::to_string(tile.tokens) + " tokens, " +
                std::to_string(tile.keys) + " keys of " + std::to_string(tile.head_dim),
            expected, found);
  }

  // One component of a position's key and value, into the blocks that attention_f32 reads.
  static void restore(std::size_t head_dim, const KvCodes& codes, std::size_t position, std::size_t d,
                      std::vector<float>& k, std::vector<float>& v) {
    const KvBlock layout{codes.bits, head_dim};
    const std::size_t block = position / kKeyBlock, j = position % kKeyBlock;
    const std::uint32_t* words = codes.blocks + block * layout.words();
    const auto restored = [&](std::size_t kind, std::uint32_t code) {
      std::uint16_t ends[2];
      const auto* ranges = reinterpret_cast<const unsigned char*>(words + layout.ranges());
      for (std::size_t end = 0; end < 2; ++end)
        std::memcpy(&ends[end], ranges + ((2 * kind + end) * kKeyBlock + j) * sizeof(ends[0]),
                    sizeof(ends[0]));
      if (codes.first == nullptr || position != 0) return restore_code(code, codes.bits, ends[0], ends[1]);
      const std::size_t nibble = kind * padded_head(head_dim) + d;
      return restore_code(codes.first[nibble / 2] >> nibble % 2 * 4 & 15, 4, ends[0], ends[1]);
    };
    k[block * kKeyBlock * head_dim + (j / kLanes * head_dim + d) * kLanes + j % kLanes] =
        restored(0, read_code(words + layout.keys(j), codes.bits, d, j % kLanes));
    v[block * kKeyBlock * padded_head(head_dim) + (d / kLanes * kKeyBlock + j) * kLanes + d % kLanes] =
        restored(1, read_code(words + layout.values(d), codes.bits, j, d % kLanes));
  }

  const Kernels& candidate_;
  std::mt19937 random_{158};
};

}  // namespace

std::vector<SelfTestResult> kv_codes_self_test(const Kernels& candidate) {
  return KvCodesTest(candidate).run();
}

}  // namespace bitnet
