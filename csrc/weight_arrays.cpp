#include "weight_arrays.h"

#include <nanobind/stl/string.h>

#include <array>
#include <stdexcept>
#include <utility>

namespace nb = nanobind;

namespace bitnet {
namespace {

using U16Matrix = nb::ndarray<const std::uint16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class Kind, std::size_t N>
Kind choose(const nb::dict& from, const char* key,
            const std::array<std::pair<const char*, Kind>, N>& choices) {
  const std::string value = nb::cast<std::string>(from[key]);
  for (const auto& [name, kind] : choices)
    if (value == name) return kind;
  throw std::invalid_argument(std::string(key) + " is '" + value + "', which the engine does not know");
}

LinearRecipe read_recipe(const nb::dict& from) {
  constexpr std::array<std::pair<const char*, WeightKind>, 2> kWeights{
      {{"ternary", WeightKind::ternary}, {"binary", WeightKind::binary}}};
  constexpr std::array<std::pair<const char*, InputKind>, 5> kInputs{{{"int8", InputKind::int8},
                                                                      {"int8-top50", InputKind::int8_top50},
                                                                      {"int4", InputKind::int4},
                                                                      {"fp4", InputKind::fp4},
                                                                      {"int1", InputKind::int1}}};
  constexpr std::array<std::pair<const char*, NormKind>, 2> kNorms{
      {{"rms", NormKind::rms}, {"layer", NormKind::layer}}};
  LinearRecipe recipe;
  recipe.weights = choose(from, "weights", kWeights);
  recipe.row_groups = nb::cast<std::size_t>(from["row_groups"]);
  recipe.column_groups = nb::cast<std::size_t>(from["column_groups"]);
  recipe.inputs = choose(from, "inputs", kInputs);
  recipe.rotate = nb::cast<bool>(from["rotate"]);
  if (!from["norm"].is_none()) recipe.norm = choose(from, "norm", kNorms);
  recipe.norm_eps = nb::cast<float>(from["norm_eps"]);
  return recipe;
}

// Layers that one call runs: one kernel serves them all, and one quantised input where they have no norms.
void require_same_input(std::initializer_list<const Linear*> layers, const std::string& names) {
  const LinearRecipe& first = (*layers.begin())->recipe;
  for (const Linear* layer : layers) {
    const LinearRecipe& recipe = layer->recipe;
    require(recipe.weights == first.weights && recipe.inputs == first.inputs &&
                recipe.column_groups == first.column_groups && recipe.rotate == first.rotate &&
                recipe.norm == first.norm,
            names + " differ in recipe");
  }
}

}  // namespace

std::vector<float> read_vector(nb::handle array, std::size_t size, const std::string& name) {
  const F32Vector values = nb::cast<F32Vector>(array);
  require(values.shape(0) == size, name + " has the wrong length");
  return std::vector<float>(values.data(), values.data() + size);
}

std::vector<float> read_table(nb::handle array, std::size_t rows, std::size_t columns,
                              const std::string& name) {
  const F32Matrix values = nb::cast<F32Matrix>(array);
  require(values.shape(0) == rows && values.shape(1) == columns, name + " has the wrong shape");
  return std::vector<float>(values.data(), values.data() + rows * columns);
}

Table view_table(nb::handle array, std::size_t rows, std::size_t columns, const std::string& name) {
  Table table;
  // without conversion, which would make an array that is gone on return
  if (U16Matrix bits; nb::try_cast(array, bits, false)) {
    require(bits.shape(0) == rows && bits.shape(1) == columns, name + " has the wrong shape");
    table.bf16 = bits.data();
    return table;
  }
  F32Matrix values;
  require(nb::try_cast(array, values, false), name + " must be a matrix of uint16 or float32, contiguous");
  require(values.shape(0) == rows && values.shape(1) == columns, name + " has the wrong shape");
  table.f32 = values.data();
  return table;
}

Linear read_linear(nb::handle item, std::size_t rows, std::size_t columns, const std::string& name,
                   ThreadPool& pool) {
  const nb::tuple parts = nb::cast<nb::tuple>(item);
  require(parts.size() == 5, name + " must be (packed, scales, bias, norm weight, recipe)");
  const U8Matrix packed = nb::cast<U8Matrix>(parts[0]);
  const LinearRecipe recipe = read_recipe(nb::cast<nb::dict>(parts[4]));
  const std::size_t together = recipe.weights == WeightKind::binary ? 8 : 4;
  require(packed.shape(0) * together == rows && packed.shape(1) == columns, name + " has the wrong shape");
  require(rows > 0 && columns > 0, name + " is empty");
  require(padded_columns(columns) < std::size_t{1} << 22, name + " has more columns than exact sums allow");
  const std::size_t groups = recipe.row_groups * recipe.column_groups;
  require(recipe.row_groups > 0 && recipe.column_groups > 0 && rows % recipe.row_groups == 0 &&
              columns % recipe.column_groups == 0 && (recipe.row_groups == 1 || recipe.column_groups == 1),
          name + " cannot be split into its groups");
  const std::vector<float> scales = read_vector(parts[1], groups, name + " scales");
  std::vector<float> bias, norm_weight;
  if (!parts[2].is_none()) bias = read_vector(parts[2], rows, name + " bias");
  if (recipe.norm != NormKind::none) norm_weight = read_vector(parts[3], columns, name + " norm");
  Linear linear = Linear::from_packed(packed.data(), rows, columns, recipe, scales, std::move(bias), pool);
  linear.norm_weight = std::move(norm_weight);
  return linear;
}

Layer read_layer(const Config& config, const nb::dict& from, ThreadPool& pool) {
  const std::size_t hidden = config.hidden_size, ffn = config.intermediate_size;
  const std::size_t query = config.query_size(), key_value = config.key_value_size();
  const auto norm = [&](const char* name, std::size_t size) {
    return from[name].is_none() ? std::vector<float>() : read_vector(from[name], size, name);
  };
  const auto linear = [&](const char* name, std::size_t rows, std::size_t columns) {
    return read_linear(from[name], rows, columns, name, pool);
  };
  Layer layer{norm("input_norm", hidden),          norm("attention_sub_norm", query),
              norm("post_attention_norm", hidden), norm("feed_forward_sub_norm", ffn),
              linear("query", query, hidden),      linear("key", key_value, hidden),
              linear("value", key_value, hidden),  linear("output", hidden, query),
              linear("gate", ffn, hidden),         linear("up", ffn, hidden),
              linear("down", hidden, ffn)};
  require_same_input({&layer.query, &layer.key, &layer.value}, "query, key and value");
  require_same_input({&layer.gate, &layer.up}, "gate and up");
  if (config.activation == Activation::relu2 && layer.down.may_skip_columns()) {
    const nb::tuple down = nb::cast<nb::tuple>(from["down"]);
    layer.down.add_columns(nb::cast<U8Matrix>(down[0]).data(), pool);
  }
  return layer;
}

}  // namespace bitnet
