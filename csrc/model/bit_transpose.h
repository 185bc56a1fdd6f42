// An 8 x 8 transposition, by which binary weights get into the kernels' blocks.
#pragma once

#include <cstdint>

namespace bitnet {

// Bit b of byte a becomes bit a of byte b (Warren, Hacker's Delight, section 7-3).
inline std::uint64_t transpose_bits(std::uint64_t x) {
  const auto swap = [&](std::uint64_t mask, unsigned shift) {
    const std::uint64_t moved = (x ^ (x >> shift)) & mask;
    x ^= moved ^ (moved << shift);
  };
  swap(0x00aa00aa00aa00aaull, 7);
  swap(0x0000cccc0000ccccull, 14);
  swap(0x00000000f0f0f0f0ull, 28);
  return x;
}

}  // namespace bitnet
