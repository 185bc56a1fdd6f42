// The kernels of one-bit values against the scalar ones on this very machine: part of `bitnet doctor`.
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <string>

#include "binary_kernels.h"
#include "model/buffer.h"
#include "self_test_report.h"

namespace bitnet {
namespace {

class BinarySelfTest : SelfTestReport {
 public:
  explicit BinarySelfTest(const BinaryKernels& candidate) : candidate_(candidate) {}

  std::vector<SelfTestResult> run() {
    products("binary_gemm", &BinaryKernels::binary_gemm, 1);
    products("bit_serial_gemm", &BinaryKernels::ternary_gemm, 2);
    packing();
    return results();
  }

 private:
  // 248 and 256 words: on both sides of the point where sums in bytes are folded.
  static constexpr std::size_t kWords[] = {8, 24, 32, 248, 256};

  Buffer<std::uint32_t> random_words(std::size_t count) {
    Buffer<std::uint32_t> words(count);
    for (std::size_t i = 0; i < count; ++i) words.data()[i] = static_cast<std::uint32_t>(random_());
    return words;
  }

  void products(const char* name, void (*BinaryKernels::*kernel)(const BitProduct&), std::size_t lines) {
    for (std::size_t words : kWords) {
      for (std::size_t planes = 1; planes <= kMostPlanes; ++planes) {
        const std::size_t rows = 21, stride = 23, tokens = planes == 1 ? 15 : 5;
        Buffer<std::uint32_t> weights = random_words(padded_rows(rows) * words * lines);
        Buffer<std::uint32_t> x = random_words(tokens * planes * words);
        // The first group's and plane's bits differ everywhere: the largest counts. Zeros at odd words keep
        // the pairs of binary rows so too.
        std::fill_n(x.data(), words, 0u);
        for (std::size_t i = 0; i < kGroupRows * words * lines; ++i)
          weights.data()[i] = lines == 2 || i / kGroupRows % 2 == 1 ? ~0u : 0u;
        std::vector<std::int32_t> base(padded_rows(rows)), factors(planes);
        for (auto& value : base) value = static_cast<std::int32_t>(random_() % 4000) - 2000;
        for (auto& value : factors) value = static_cast<std::int32_t>(random_() % 257) - 128;
        std::vector<std::int32_t> expected(tokens * stride, -7), found(tokens * stride, -7);
        BitProduct product{weights.data(), base.data(), rows,           words,           x.data(),
                           tokens,         planes,      factors.data(), expected.data(), stride};
        (scalar_binary_kernels.*kernel)(product);
        product.y = found.data();
        (candidate_.*kernel)(product);
        compare(std::to_string(words) + " words, " + std::to_string(planes) + " planes", expected == found);
      }
    }
    finish(name);
  }

  void packing() {
    for (std::size_t n : {1, 7, 8, 31, 32, 100, 257}) {
      std::vector<float> x(n);
      std::normal_distribution<float> normal;
      for (float& value : x) value = normal(random_);
      for (float special : {0.0f, -0.0f, 1e-45f, std::numeric_limits<float>::infinity(),
                            std::numeric_limits<float>::quiet_NaN()}) {
        x[random_() % n] = special;  // a NaN is never written over
        std::vector<std::uint8_t> expected((n + 7) / 8, 0x5a), found((n + 7) / 8, 0xa5);
        const bool numbers = scalar_binary_kernels.pack_signs(x.data(), n, expected.data());
        const bool same = numbers == candidate_.pack_signs(x.data(), n, found.data());
        compare(std::to_string(n) + " signs", same && expected == found);
      }
      for (std::size_t planes = 1; planes <= kMostPlanes; ++planes) {
        const int limit = 1 << (planes - 1);
        std::vector<std::int8_t> codes(n);
        for (auto& code : codes)
          code = static_cast<std::int8_t>(static_cast<int>(random_() % (2u * limit)) - limit);
        for (int code : {codes[0] + 0, -limit - 1, limit}) {  // as they are, then one out of range
          codes[random_() % n] = static_cast<std::int8_t>(std::clamp(code, -128, 127));
          std::vector<std::uint8_t> expected((n + 7) / 8 * planes, 0x5a), found(expected.size(), 0xa5);
          const bool fits = scalar_binary_kernels.pack_planes(codes.data(), n, planes, expected.data());
          const bool same = fits == candidate_.pack_planes(codes.data(), n, planes, found.data());
          compare(std::to_string(n) + " codes, " + std::to_string(planes) + " planes",
                  same && expected == found);
        }
      }
    }
    finish("pack_signs, pack_planes");
  }

  const BinaryKernels& candidate_;
  std::mt19937 random_{1905};
};

}  // namespace

std::vector<SelfTestResult> binary_self_test(const BinaryKernels& candidate) {
  return BinarySelfTest(candidate).run();
}

}  // namespace bitnet
