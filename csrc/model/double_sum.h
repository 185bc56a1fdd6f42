// Sums for means, in float64: so near the exact sum that the mean rounded to float32 does not depend on the
// order. The order is fixed nevertheless, for the last bit: eight interleaved parts, then their sum.
#pragma once

#include <cstddef>

namespace bitnet {

// f(0) + ... + f(n - 1)
template <class Function>
double double_sum(std::size_t n, Function f) {
  double parts[8] = {};
  std::size_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (std::size_t j = 0; j < 8; ++j) parts[j] += f(i + j);
  for (std::size_t j = 0; i < n; ++i, ++j) parts[j] += f(i);
  return ((parts[0] + parts[1]) + (parts[2] + parts[3])) + ((parts[4] + parts[5]) + (parts[6] + parts[7]));
}

// The mean, rounded to float32.
template <class Function>
float double_mean(std::size_t n, Function f) {
  return static_cast<float>(double_sum(n, f) / static_cast<double>(n));
}

}  // namespace bitnet
