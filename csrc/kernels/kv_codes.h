// Keys and values in 8, 4 or 3 bits as attention reads them: a block of 64 positions of one key/value head,
// its parts one behind the other, in words of 32 bits.
//   keys    [4 groups of 16 positions]  a panel of head_dim vectors: lanes are positions
//   values  [width / 16]                a panel of 64 vectors, one a position: lanes are components
//   ranges  float16 bits [4][64]        of each position: key's low, key's high, value's low, value's high
// A panel's vectors of sixteen codes are packed along the panel, so that a lane's codes stay in its words:
//   8 bits  4 vectors a word, 4 bits  8 vectors a word; low bits first
//   3 bits  32 vectors in three words: two with the low two bits of 16 vectors each, one with the high bits
// quantize/kv_cache.py defines what the codes mean.
#pragma once

#include "kernels.h"

namespace bitnet {

struct KvPanel {
  std::size_t bits, vectors;

  constexpr std::size_t words() const {
    const std::size_t group = bits == 3 ? 32 : 32 / bits;
    return (vectors + group - 1) / group * (bits == 3 ? 3 : 1) * kLanes;
  }
};

enum class KvRange : std::size_t { key_low, key_high, value_low, value_high };

// Where the parts of a block begin, in words.
struct KvBlock {
  std::size_t bits, head_dim;

  constexpr std::size_t keys(std::size_t position) const {
    return position / kLanes * KvPanel{bits, head_dim}.words();
  }
  constexpr std::size_t values(std::size_t component) const {
    return keys(kKeyBlock) + component / kLanes * KvPanel{bits, kKeyBlock}.words();
  }
  constexpr std::size_t ranges() const { return values(padded_head(head_dim)); }
  constexpr std::size_t words() const { return ranges() + 4 * kKeyBlock / 2; }
};

// One code of a panel: read and written in plain code, where a position is stored and in tests.
std::uint32_t read_code(const std::uint32_t* panel, std::size_t bits, std::size_t vector, std::size_t lane);
void write_code(std::uint32_t* panel, std::size_t bits, std::size_t vector, std::size_t lane,
                std::uint32_t code);

// The value of IEEE half-precision bits.
float half_value(std::uint16_t half);
// The value of a code between two ends.
float restore_code(std::uint32_t code, std::size_t bits, std::uint16_t low, std::uint16_t high);

// A part of self_test.
std::vector<SelfTestResult> kv_codes_self_test(const Kernels& candidate);

}  // namespace bitnet
