// Single layers for a model that another library runs: the ternary linear layer, and the full-precision head.
// Arrays in, arrays filled. Every std::invalid_argument becomes a ValueError. Products release the GIL.
#include "layer_bindings.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <string>
#include <vector>

#include "model/head.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitnet {
namespace {

using F32Input = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using F32Output = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bf16Bits = nb::ndarray<const std::uint16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// Tokens that are quantised together, so that scratch does not grow with the prompt.
constexpr std::size_t kRoundTokens = 512;

std::size_t checked(std::size_t threads) {
  require(threads >= 1 && threads <= 1024, "threads must be in 1..1024");
  return threads;
}

// outputs[i] [tokens][rows] = (codes of layer i . quantised x) * scale / activation scale, x
// [tokens][columns].
void multiply_together(const std::vector<TernaryLinear*>& layers, const F32Input& x,
                       const std::vector<F32Output>& outputs) {
  const std::size_t tokens = x.shape(0), columns = x.shape(1);
  require(!layers.empty() && layers.size() == outputs.size(), "as many outputs as layers, at least one");
  for (const TernaryLinear* layer : layers) require(layer != nullptr, "a layer is None");
  LayerPool& pool = layers[0]->pool;
  std::vector<LinearOutput> to;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const Linear& linear = layers[i]->linear;
    require(&layers[i]->pool == &pool, "layers of different pools");
    require(columns == linear.columns, "x and a layer disagree in columns");
    require(outputs[i].shape(0) == tokens && outputs[i].shape(1) == linear.rows,
            "an output has the wrong shape");
    to.push_back({&linear, outputs[i].data(), linear.rows});
  }
  const float* from = x.data();
  const nb::gil_scoped_release release;
  const std::lock_guard<std::mutex> lock(pool.mutex);
  for (std::size_t first = 0; first < tokens; first += kRoundTokens) {
    const std::size_t count = std::min(kRoundTokens, tokens - first);
    pool.rows.reserve(count, padded_columns(columns));
    pool.threads.run(count, [&](std::size_t token, std::size_t) {
      pool.rows.quantize(pool.kernels, from + (first + token) * columns, columns, token);
    });
    run_linears(pool.kernels, pool.threads, pool.rows, count, to);
    for (LinearOutput& output : to) output.y += count * output.stride;
  }
}

// y [tokens][rows] = x [tokens][columns] . weight [rows][columns]; weight holds bfloat16 bits or float32.
void head_product(LayerPool& pool, const F32Input& x, nb::handle weight, const F32Output& y) {
  Table table;
  std::size_t rows = 0, columns = 0;
  // without conversion, which would turn float32 into whole numbers
  if (Bf16Bits bits; nb::try_cast(weight, bits, false)) {
    table.bf16 = bits.data(), rows = bits.shape(0), columns = bits.shape(1);
  } else {
    const F32Input values = nb::cast<F32Input>(weight, false);
    table.f32 = values.data(), rows = values.shape(0), columns = values.shape(1);
  }
  require(x.shape(1) == columns, "x and weight disagree in columns");
  require(y.shape(0) == x.shape(0) && y.shape(1) == rows, "y has the wrong shape");
  Config config{};
  config.vocab_size = rows;
  config.hidden_size = columns;
  const float* from = x.data();
  float* to = y.data();
  const std::size_t tokens = x.shape(0);
  const nb::gil_scoped_release release;
  const std::lock_guard<std::mutex> lock(pool.mutex);
  run_full_head(config, pool.kernels, pool.threads, table, from, tokens, to);
}

}  // namespace

LayerPool::LayerPool(std::size_t count, const std::string& isa)
    : kernels(select_kernels(isa)), threads(checked(count)) {}

TernaryLinear::TernaryLinear(const Packed& packed, float scale, LayerPool& owner) : pool(owner) {
  const std::uint8_t* data = packed.data();
  const std::size_t rows = packed.shape(0) * 4, columns = packed.shape(1);
  require(rows > 0 && columns > 0, "packed is empty");
  const nb::gil_scoped_release release;
  const std::lock_guard<std::mutex> lock(pool.mutex);
  linear = Linear::from_packed(data, rows, columns, scale, {}, pool.threads);
}

void bind_layers(nb::module_& m) {
  nb::class_<LayerPool>(m, "LayerPool")
      .def(nb::init<std::size_t, const std::string&>(), "threads"_a, "isa"_a);
  nb::class_<TernaryLinear>(m, "TernaryLinear")
      .def(nb::init<const TernaryLinear::Packed&, float, LayerPool&>(), "packed"_a, "scale"_a, "pool"_a,
           nb::keep_alive<1, 4>());
  m.def("multiply_together", &multiply_together, "layers"_a, "x"_a.noconvert(), "outputs"_a.noconvert());
  m.def("head_product", &head_product, "pool"_a, "x"_a.noconvert(), "weight"_a, "y"_a.noconvert());
  bind_decoder_layer(m);
}

}  // namespace bitnet
