// What one projection computes: LinearRecipe of bitnet/quant_config.py, as C++ needs it.
#pragma once

#include <cstddef>

namespace bitnet {

enum class WeightKind { ternary, binary };
enum class InputKind { int8, int8_top50, int4, fp4, int1 };
enum class NormKind { none, rms, layer };

struct LinearRecipe {
  WeightKind weights = WeightKind::ternary;
  std::size_t row_groups = 1;     // blocks of rows with a scale each
  std::size_t column_groups = 1;  // blocks of inputs, each normed, quantised and scaled apart
  InputKind inputs = InputKind::int8;
  bool rotate = false;
  NormKind norm = NormKind::none;  // inside the projection
  float norm_eps = 0.0f;

  // A zero of the input stays the code 0 (subtracting a mean, mixing and one-bit codes each end that).
  bool keeps_zeros() const { return !rotate && norm != NormKind::layer && inputs != InputKind::int1; }
  // Its inputs' codes are at most 12 in magnitude, kSmallCode of kernels.h.
  bool small_codes() const { return inputs != InputKind::int8 && inputs != InputKind::int8_top50; }
};

}  // namespace bitnet
