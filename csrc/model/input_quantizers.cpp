#include "input_quantizers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "double_sum.h"

namespace bitnet {
namespace {

constexpr float kLeastMagnitude = 1e-5f;  // MIN_ABSMAX of activations.py
constexpr std::int32_t kInfinityBits = 0x7f800000;

// |x| as the bits of its float32, which order as magnitudes do; infinity and NaN come last.
std::int32_t magnitude_bits(float x) {
  std::int32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits & 0x7fffffff;
}

std::int32_t largest_bits(const float* x, std::size_t n) {
  std::int32_t largest = 0;
  for (std::size_t i = 0; i < n; ++i) largest = std::max(largest, magnitude_bits(x[i]));
  return largest;
}

float from_bits(std::int32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

float mean_magnitude(const float* x, std::size_t n) {
  return std::max(double_mean(n, [&](std::size_t i) { return double{std::fabs(x[i])}; }), kLeastMagnitude);
}

// Half to even, for magnitudes below 2^22: adding 1.5 * 2^23 leaves no bits for a fraction, and the whole
// number in the lowest ones. Baseline instruction sets have no vectors for std::nearbyint or for int8.
constexpr float kShift = 12582912.0f;

float round_small(float x) {
  return (x + kShift) - kShift;
}

std::int8_t round_to_int8(float x) {
  const float shifted = x + kShift;
  std::uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  return static_cast<std::int8_t>(bits);
}

float quantize_int4(const float* x, std::size_t n, std::int8_t* codes) {
  const float scale = static_cast<float>(std::sqrt(7.0)) / mean_magnitude(x, n);
  // whole bounds: clamping before or after rounding is the same
  for (std::size_t i = 0; i < n; ++i) codes[i] = round_to_int8(std::min(std::max(x[i] * scale, -8.0f), 7.0f));
  return scale;
}

// Twice E2M1: whole numbers to 4, even ones to 8, then 8 and 12, which multiples of 4 up to 12 are.
float quantize_fp4(const float* x, std::size_t n, float largest, std::int8_t* codes) {
  const float scale = 12.0f / std::max(largest, kLeastMagnitude);
  for (std::size_t i = 0; i < n; ++i) {
    const float doubled = std::min(std::max(x[i] * scale, -12.0f), 12.0f), magnitude = std::fabs(doubled);
    // 1, 2 or 4; dividing by it is exact
    const float step = 1.0f + (magnitude < 4.0f ? 0.0f : 1.0f) + (magnitude < 8.0f ? 0.0f : 2.0f);
    codes[i] = round_to_int8(round_small(doubled / step) * step);
  }
  return scale;
}

float quantize_int1(const float* x, std::size_t n, std::int8_t* codes) {
  for (std::size_t i = 0; i < n; ++i) codes[i] = static_cast<std::int8_t>(x[i] > 0.0f ? 1 : -1);
  return 1.0f / mean_magnitude(x, n);
}

// y = what of x is not smaller in magnitude than the ceil(n / 2)-th largest, 0 elsewhere.
void keep_larger_half(const float* x, std::size_t n, float* y) {
  for (std::size_t i = 0; i < n; ++i) y[i] = std::fabs(x[i]);
  float* least = y + n / 2;
  std::nth_element(y, least, y + n);
  const float bound = *least;
  for (std::size_t i = 0; i < n; ++i) y[i] = std::fabs(x[i]) >= bound ? x[i] : 0.0f;
}

}  // namespace

void quantize_input(const Kernels& kernels, InputKind kind, const float* x, std::size_t n, std::size_t padded,
                    float* scratch, std::int8_t* codes, float* scale, std::int32_t* sum) {
  if (kind == InputKind::int8) return kernels.quantize(x, n, padded, codes, scale, sum);
  std::memset(codes, 0, padded);
  *sum = 0;
  const std::int32_t largest = largest_bits(x, n);
  if (largest >= kInfinityBits) {
    *scale = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  if (kind == InputKind::int8_top50) {
    keep_larger_half(x, n, scratch);
    return kernels.quantize(scratch, n, padded, codes, scale, sum);
  }
  if (kind == InputKind::int4)
    *scale = quantize_int4(x, n, codes);
  else if (kind == InputKind::fp4)
    *scale = quantize_fp4(x, n, from_bits(largest), codes);
  else
    *scale = quantize_int1(x, n, codes);
  std::int32_t total = 0;
  for (std::size_t i = 0; i < n; ++i) total += codes[i];
  *sum = total;
}

}  // namespace bitnet
