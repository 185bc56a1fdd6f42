#include "input_transforms.h"

#include <cmath>

#include "double_sum.h"

namespace bitnet {
namespace {

// Stages 1 and 2 of a block of four or more at once: partners this near leave no vectors.
void first_two_stages(float* x, std::size_t n) {
  for (std::size_t i = 0; i < n; i += 4) {
    const float a = x[i] + x[i + 1], b = x[i] - x[i + 1];
    const float c = x[i + 2] + x[i + 3], d = x[i + 2] - x[i + 3];
    x[i] = a + c;
    x[i + 1] = b + d;
    x[i + 2] = a - c;
    x[i + 3] = b - d;
  }
}

void stage(float* x, std::size_t n, std::size_t partner) {
  for (std::size_t first = 0; first < n; first += 2 * partner) {
    float *low = x + first, *high = low + partner;
    for (std::size_t i = 0; i < partner; ++i) {
      const float a = low[i], b = high[i];
      low[i] = a + b;
      high[i] = a - b;
    }
  }
}

}  // namespace

void normalise(NormKind kind, const float* x, const float* weight, std::size_t n, float eps, float* y) {
  float mean = 0.0f;
  if (kind == NormKind::layer) mean = double_mean(n, [&](std::size_t i) { return double{x[i]}; });
  for (std::size_t i = 0; i < n; ++i) y[i] = x[i] - mean;
  // squares rounded to float32, as the definition has them
  const float square = double_mean(n, [&](std::size_t i) {
    const float value = y[i] * y[i];
    return double{value};
  });
  const float inverse = 1.0f / std::sqrt(square + eps);
  for (std::size_t i = 0; i < n; ++i) y[i] = y[i] * inverse * weight[i];
}

void hadamard(float* x, std::size_t n) {
  const std::size_t block = n & (~n + 1);
  std::size_t partner = 1;
  if (block >= 4) {
    first_two_stages(x, n);
    partner = 4;
  }
  for (; partner < block; partner *= 2) stage(x, n, partner);
  const float factor = static_cast<float>(1.0 / std::sqrt(static_cast<double>(block)));
  for (std::size_t i = 0; i < n; ++i) x[i] *= factor;
}

}  // namespace bitnet
