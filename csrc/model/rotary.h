// Rotary positions (arXiv 2104.09864), half-split: (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) for the two
// halves of each head.
#pragma once

#include <cstddef>

namespace bitnet {

// heads [count][head_dim], in place; cos and sin [head_dim / 2] of one position.
inline void rotate(float* heads, std::size_t count, std::size_t head_dim, const float* cos,
                   const float* sin) {
  const std::size_t half = head_dim / 2;
  for (std::size_t head = 0; head < count; ++head, heads += head_dim) {
    for (std::size_t i = 0; i < half; ++i) {
      const float first = heads[i], second = heads[half + i];
      heads[i] = first * cos[i] - second * sin[i];
      heads[half + i] = second * cos[i] + first * sin[i];
    }
  }
}

}  // namespace bitnet
