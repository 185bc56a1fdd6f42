#include "quantized_rows.h"

#include <algorithm>

#include "input_quantizers.h"
#include "input_transforms.h"

namespace bitnet {

void QuantizedRows::quantize(const Kernels& kernels, const LinearRecipe& recipe, const float* norm_weight,
                             const float* x, std::size_t n, std::size_t row, float* scratch) {
  const std::size_t part = n / recipe.column_groups;
  for (std::size_t group = 0; group < recipe.column_groups; ++group) {
    const float* values = x + group * part;
    if (recipe.norm != NormKind::none) {
      normalise(recipe.norm, values, norm_weight + group * part, part, recipe.norm_eps, scratch);
      values = scratch;
    }
    if (recipe.rotate) {
      if (values != scratch) std::copy(values, values + part, scratch);
      hadamard(scratch, part);
      values = scratch;
    }
    const std::size_t at = group * rows + row;
    quantize_input(kernels, recipe.inputs, values, part, columns, scratch + part, codes.data() + at * columns,
                   scales.data() + at, sums.data() + at);
  }
}

}  // namespace bitnet
