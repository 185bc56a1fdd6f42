// One kernel or one projection at a time, for the tests that compare them with the NumPy definition.
#include "kernel_bindings.h"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "kernels/kernels.h"
#include "model/linear.h"
#include "weight_arrays.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitnet {
namespace {

nb::tuple quantize_int8(const F32Matrix& x, const std::string& isa) {
  const Kernels& kernels = select_kernels(isa);
  const std::size_t rows = x.shape(0), columns = x.shape(1);
  std::unique_ptr<std::int8_t[]> codes(new std::int8_t[rows * columns]);
  std::unique_ptr<float[]> scales(new float[rows]);
  std::int32_t sum = 0;
  for (std::size_t row = 0; row < rows; ++row)
    kernels.quantize(x.data() + row * columns, columns, columns, codes.get() + row * columns, &scales[row],
                     &sum);
  return nb::make_tuple(new_array(std::move(codes), {rows, columns}),
                        new_array(std::move(scales), {rows, 1}));
}

nb::ndarray<nb::numpy, std::int32_t> multiply(const I8Matrix& x, const U8Matrix& packed,
                                              const std::string& isa, const LinearRecipe& recipe) {
  const Kernels& kernels = select_kernels(isa);
  const bool binary = recipe.weights == WeightKind::binary;
  const std::size_t tokens = x.shape(0), columns = x.shape(1), rows = packed.shape(0) * (binary ? 8 : 4);
  require(packed.shape(1) == columns, "x and packed disagree in columns");
  ThreadPool pool(1);
  const Linear linear = Linear::from_packed(packed.data(), rows, columns, recipe, {1.0f}, {}, pool);
  const std::size_t padded = padded_columns(columns);
  std::vector<std::int8_t> codes(tokens * padded, 0);
  std::vector<std::int32_t> sums(tokens, 0);
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t k = 0; k < columns; ++k) {
      codes[t * padded + k] = x.data()[t * columns + k];
      sums[t] += codes[t * padded + k];
    }
  }
  std::unique_ptr<std::int32_t[]> y(new std::int32_t[tokens * rows]);
  const auto gemm = binary ? kernels.sign_gemm : kernels.ternary_gemm;
  gemm(linear.weights.data(), rows, padded, codes.data(), sums.data(), tokens, y.get(), rows);
  return new_array(std::move(y), {tokens, rows});
}

nb::ndarray<nb::numpy, std::int32_t> ternary_matmul(const I8Matrix& x, const U8Matrix& packed,
                                                    const std::string& isa) {
  return multiply(x, packed, isa, {});
}

nb::ndarray<nb::numpy, std::int32_t> sign_matmul(const I8Matrix& x, const U8Matrix& packed,
                                                 const std::string& isa) {
  LinearRecipe recipe;
  recipe.weights = WeightKind::binary;
  return multiply(x, packed, isa, recipe);
}

nb::ndarray<nb::numpy, float> rms_norm(const F32Matrix& x, const F32Vector& weight, float eps,
                                       const std::string& isa) {
  const Kernels& kernels = select_kernels(isa);
  const std::size_t rows = x.shape(0), columns = x.shape(1);
  require(weight.shape(0) == columns, "x and weight disagree in columns");
  std::unique_ptr<float[]> y(new float[rows * columns]);
  for (std::size_t row = 0; row < rows; ++row)
    kernels.rms_norm(x.data() + row * columns, weight.data(), columns, eps, y.get() + row * columns);
  return new_array(std::move(y), {rows, columns});
}

// A projection as a model runs it: codes [tokens][column groups][columns / groups], their scales
// [tokens][column groups][1], and y [tokens][rows].
nb::tuple run_projection(const F32Matrix& x, nb::handle item, std::size_t rows, const std::string& isa,
                         std::size_t threads) {
  const Kernels& kernels = select_kernels(isa);
  const std::size_t tokens = x.shape(0), columns = x.shape(1);
  require(threads >= 1 && threads <= 64, "threads must be in 1..64");
  ThreadPool pool(threads);
  const Linear linear = read_linear(item, rows, columns, "linear", pool);
  const std::size_t groups = linear.recipe.column_groups, part = linear.group_columns();
  QuantizedRows input;
  input.reserve(tokens, padded_columns(part), groups);
  std::vector<float> scratch(2 * columns);
  std::unique_ptr<std::int8_t[]> codes(new std::int8_t[tokens * columns]);
  std::unique_ptr<float[]> scales(new float[tokens * groups]), y(new float[tokens * rows]);
  for (std::size_t t = 0; t < tokens; ++t) {
    input.quantize(kernels, linear.recipe, linear.norm_weight.data(), x.data() + t * columns, columns, t,
                   scratch.data());
    for (std::size_t group = 0; group < groups; ++group) {
      const std::int8_t* from = input.codes.data() + (group * tokens + t) * input.columns;
      std::copy(from, from + part, codes.get() + t * columns + group * part);
      scales[t * groups + group] = input.scales.data()[group * tokens + t];
    }
  }
  run_linears(kernels, pool, input, tokens, {{&linear, y.get(), rows}});
  return nb::make_tuple(new_array(std::move(codes), {tokens, groups, part}),
                        new_array(std::move(scales), {tokens, groups, 1}),
                        new_array(std::move(y), {tokens, rows}));
}

}  // namespace

void bind_kernels(nb::module_& m) {
  m.def("quantize_int8", &quantize_int8, "x"_a, "isa"_a);
  m.def("ternary_matmul", &ternary_matmul, "x"_a, "packed"_a, "isa"_a);
  m.def("sign_matmul", &sign_matmul, "x"_a, "packed"_a, "isa"_a);
  m.def("rms_norm", &rms_norm, "x"_a, "weight"_a, "eps"_a, "isa"_a);
  m.def("run_projection", &run_projection, "x"_a, "linear"_a, "rows"_a, "isa"_a, "threads"_a);
}

}  // namespace bitnet
