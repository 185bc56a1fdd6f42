// The extension module bitnet._core: arrays and a plain configuration in, logits out. No files, no text.
// Every std::invalid_argument becomes a ValueError. Forward passes release the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "binary_bindings.h"
#include "kernels/binary_kernels.h"
#include "layer_bindings.h"
#include "model/bandwidth.h"
#include "model/transformer.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using bitnet::Kernels;
using F32Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using F32Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using U16Matrix = nb::ndarray<const std::uint16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using U8Matrix = nb::ndarray<const std::uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using I8Matrix = nb::ndarray<const std::int8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ids = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class T>
nb::ndarray<nb::numpy, T> new_array(std::unique_ptr<T[]> data, std::initializer_list<std::size_t> shape) {
  T* raw = data.release();
  nb::capsule owner(raw, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return nb::ndarray<nb::numpy, T>(raw, shape, owner);
}

void require(bool condition, const std::string& what) {
  if (!condition) throw std::invalid_argument(what);
}

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

// bfloat16 arrives as uint16 bits; the array is used in place.
bitnet::Table view_table(nb::handle array, std::size_t rows, std::size_t columns, const std::string& name) {
  bitnet::Table table;
  U16Matrix bits;
  // without conversion, which would turn float32 into whole numbers, in an array that is gone on return
  if (nb::try_cast(array, bits, false)) {
    require(bits.shape(0) == rows && bits.shape(1) == columns, name + " has the wrong shape");
    table.bf16 = bits.data();
    return table;
  }
  const F32Matrix values = nb::cast<F32Matrix>(array);
  require(values.shape(0) == rows && values.shape(1) == columns, name + " has the wrong shape");
  table.f32 = values.data();
  return table;
}

bitnet::Linear read_linear(nb::handle item, std::size_t rows, std::size_t columns, const std::string& name,
                           bitnet::ThreadPool& pool) {
  const nb::tuple parts = nb::cast<nb::tuple>(item);
  require(parts.size() == 3, name + " must be (packed, scale, bias or None)");
  const U8Matrix packed = nb::cast<U8Matrix>(parts[0]);
  require(packed.shape(0) * 4 == rows && packed.shape(1) == columns, name + " has the wrong shape");
  std::vector<float> bias;
  if (!parts[2].is_none()) bias = read_vector(parts[2], rows, name + " bias");
  return bitnet::Linear::from_packed(packed.data(), rows, columns, nb::cast<float>(parts[1]), std::move(bias),
                                     pool);
}

bitnet::Layer read_layer(const bitnet::Config& config, const nb::dict& from, bitnet::ThreadPool& pool) {
  const std::size_t hidden = config.hidden_size, ffn = config.intermediate_size;
  const std::size_t query = config.query_size(), key_value = config.key_value_size();
  const auto vector = [&](const char* name, std::size_t size) { return read_vector(from[name], size, name); };
  const auto linear = [&](const char* name, std::size_t rows, std::size_t columns) {
    return read_linear(from[name], rows, columns, name, pool);
  };
  bitnet::Layer layer{vector("input_norm", hidden),
                      vector("attention_sub_norm", query),
                      vector("post_attention_norm", hidden),
                      vector("feed_forward_sub_norm", ffn),
                      linear("query", query, hidden),
                      linear("key", key_value, hidden),
                      linear("value", key_value, hidden),
                      linear("output", hidden, query),
                      linear("gate", ffn, hidden),
                      linear("up", ffn, hidden),
                      linear("down", hidden, ffn)};
  if (config.activation == bitnet::Activation::relu2) {
    const nb::tuple down = nb::cast<nb::tuple>(from["down"]);
    layer.down.add_columns(nb::cast<U8Matrix>(down[0]).data(), pool);
  }
  return layer;
}

std::string check_choice(const std::string& value, const char* first, const char* second, const char* name) {
  require(value == first || value == second,
          std::string(name) + " is '" + value + "'; use " + first + " or " + second);
  return value;
}

// A transformer and the arrays it reads in place.
class Engine {
 public:
  Engine(const nb::dict& shape, const std::string& hidden_act, const std::string& kv_dtype,
         const std::string& head_type, nb::object embedding, nb::object head, nb::object final_norm,
         nb::object rope_cos, nb::object rope_sin, const nb::iterable& layers, std::size_t threads,
         const std::string& isa)
      : embedding_(std::move(embedding)), head_(std::move(head)) {
    const Kernels& kernels = bitnet::select_kernels(isa);
    require(threads >= 1 && threads <= 1024, "threads must be in 1..1024");
    const auto size = [&](const char* name) { return nb::cast<std::size_t>(shape[name]); };
    bitnet::Config config{size("vocab_size"),
                          size("hidden_size"),
                          size("intermediate_size"),
                          size("num_hidden_layers"),
                          size("num_attention_heads"),
                          size("num_key_value_heads"),
                          size("head_dim"),
                          size("max_position_embeddings"),
                          nb::cast<float>(shape["rms_norm_eps"]),
                          bitnet::Activation::relu2,
                          bitnet::CacheType::float16,
                          bitnet::HeadType::full};
    if (check_choice(hidden_act, "relu2", "silu", "hidden_act") == "silu")
      config.activation = bitnet::Activation::silu;
    if (check_choice(kv_dtype, "float16", "float32", "kv_dtype") == "float32")
      config.cache_type = bitnet::CacheType::float32;
    if (check_choice(head_type, "full", "shortlist", "head") == "shortlist")
      config.head_type = bitnet::HeadType::shortlist;
    bitnet::Weights weights;
    weights.embedding = view_table(embedding_, config.vocab_size, config.hidden_size, "embedding");
    weights.head = view_table(head_, config.vocab_size, config.hidden_size, "head");
    weights.final_norm = read_vector(final_norm, config.hidden_size, "final_norm");
    weights.rope_cos = read_table(rope_cos, config.max_positions, config.head_dim / 2, "rope_cos");
    weights.rope_sin = read_table(rope_sin, config.max_positions, config.head_dim / 2, "rope_sin");
    bitnet::ThreadPool pool(threads);
    // One after the other: a layer that was decoded for us can go before the next one comes.
    for (nb::handle layer : layers)
      weights.layers.push_back(read_layer(config, nb::cast<nb::dict>(layer), pool));
    require(weights.layers.size() == config.layers, "layers has the wrong length");
    transformer_ = std::make_unique<bitnet::Transformer>(config, std::move(weights), threads, kernels);
  }

  std::unique_ptr<bitnet::KvCache> new_cache(std::size_t max_tokens) const {
    const bitnet::Config& config = transformer_->config();
    require(max_tokens >= 1 && max_tokens <= config.max_positions, "max_tokens is out of range");
    return std::make_unique<bitnet::KvCache>(config, max_tokens);
  }

  using Batch = std::vector<std::pair<bitnet::KvCache*, Ids>>;

  nb::ndarray<nb::numpy, float> forward(const Batch& batch, bool all_logits) {
    const std::vector<bitnet::Sequence> sequences = read_batch(batch);
    const std::size_t rows = all_logits ? count_ids(sequences) : sequences.size();
    const std::size_t vocab = transformer_->config().vocab_size;
    std::unique_ptr<float[]> logits(new float[rows * vocab]);
    {
      const nb::gil_scoped_release release;
      transformer_->forward(sequences, all_logits, logits.get());
    }
    return new_array(std::move(logits), {rows, vocab});
  }

  nb::ndarray<nb::numpy, float> hidden_states(const Batch& batch) {
    const std::vector<bitnet::Sequence> sequences = read_batch(batch);
    const std::size_t rows = count_ids(sequences), width = transformer_->config().hidden_size;
    std::unique_ptr<float[]> hidden(new float[rows * width]);
    {
      const nb::gil_scoped_release release;
      transformer_->hidden_states(sequences, hidden.get());
    }
    return new_array(std::move(hidden), {rows, width});
  }

  // Seconds by part since the model was loaded.
  std::vector<std::pair<std::string, double>> profile() const {
    std::vector<std::pair<std::string, double>> parts;
    for (std::size_t i = 0; i < bitnet::kParts; ++i)
      parts.emplace_back(bitnet::kPartNames[i], transformer_->profile().seconds()[i]);
    return parts;
  }

  // Mean shares of live rows of up and live columns of down over single tokens; none before the first.
  std::optional<std::pair<double, double>> live_shares() const {
    const bitnet::LiveShares& shares = transformer_->live_shares();
    if (shares.tokens == 0) return std::nullopt;
    const double all = static_cast<double>(shares.tokens * transformer_->config().intermediate_size);
    return std::make_pair(static_cast<double>(shares.up_rows) / all,
                          static_cast<double>(shares.down_columns) / all);
  }

  std::string isa() const { return transformer_->kernels().name; }
  std::size_t threads() const { return transformer_->threads(); }

 private:
  static std::vector<bitnet::Sequence> read_batch(const Batch& batch) {
    std::vector<bitnet::Sequence> sequences;
    for (const auto& [cache, ids] : batch) {
      require(cache != nullptr, "a batch entry without a cache");
      sequences.push_back({cache, ids.data(), ids.shape(0)});
    }
    return sequences;
  }

  static std::size_t count_ids(const std::vector<bitnet::Sequence>& sequences) {
    std::size_t count = 0;
    for (const bitnet::Sequence& sequence : sequences) count += sequence.count;
    return count;
  }

  nb::object embedding_, head_;
  std::unique_ptr<bitnet::Transformer> transformer_;
};

void truncate_cache(bitnet::KvCache& cache, std::size_t length) {
  require(length <= cache.length(), "length is beyond what the cache holds");
  cache.set_length(length);
}

std::vector<std::string> names(const std::vector<const Kernels*>& list) {
  std::vector<std::string> result;
  for (const Kernels* kernels : list) result.emplace_back(kernels->name);
  return result;
}

std::vector<std::tuple<std::string, bool, std::string>> self_test(const std::string& isa) {
  std::vector<std::tuple<std::string, bool, std::string>> rows;
  const Kernels& kernels = bitnet::select_kernels(isa);
  const nb::gil_scoped_release release;
  for (bitnet::SelfTestResult& result : bitnet::self_test(kernels))
    rows.emplace_back(std::move(result.kernel), result.passed, std::move(result.detail));
  for (bitnet::SelfTestResult& result : bitnet::binary_self_test(bitnet::binary_kernels(kernels)))
    rows.emplace_back(std::move(result.kernel), result.passed, std::move(result.detail));
  return rows;
}

// One kernel at a time, for the tests that compare them with the NumPy definition.
nb::tuple quantize_int8(const F32Matrix& x, const std::string& isa) {
  const Kernels& kernels = bitnet::select_kernels(isa);
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

nb::ndarray<nb::numpy, std::int32_t> ternary_matmul(const I8Matrix& x, const U8Matrix& packed,
                                                    const std::string& isa) {
  const Kernels& kernels = bitnet::select_kernels(isa);
  const std::size_t tokens = x.shape(0), columns = x.shape(1), rows = packed.shape(0) * 4;
  require(packed.shape(1) == columns, "x and packed disagree in columns");
  bitnet::ThreadPool pool(1);
  const bitnet::Linear linear = bitnet::Linear::from_packed(packed.data(), rows, columns, 1.0f, {}, pool);
  const std::size_t padded = bitnet::padded_columns(columns);
  std::vector<std::int8_t> codes(tokens * padded, 0);
  std::vector<std::int32_t> sums(tokens, 0);
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t k = 0; k < columns; ++k) {
      codes[t * padded + k] = x.data()[t * columns + k];
      sums[t] += codes[t * padded + k];
    }
  }
  std::unique_ptr<std::int32_t[]> y(new std::int32_t[tokens * rows]);
  kernels.ternary_gemm(linear.weights.data(), rows, padded, codes.data(), sums.data(), tokens, y.get(), rows);
  return new_array(std::move(y), {tokens, rows});
}

nb::ndarray<nb::numpy, float> rms_norm(const F32Matrix& x, const F32Vector& weight, float eps,
                                       const std::string& isa) {
  const Kernels& kernels = bitnet::select_kernels(isa);
  const std::size_t rows = x.shape(0), columns = x.shape(1);
  require(weight.shape(0) == columns, "x and weight disagree in columns");
  std::unique_ptr<float[]> y(new float[rows * columns]);
  for (std::size_t row = 0; row < rows; ++row)
    kernels.rms_norm(x.data() + row * columns, weight.data(), columns, eps, y.get() + row * columns);
  return new_array(std::move(y), {rows, columns});
}

}  // namespace

NB_MODULE(_core, m) {
  nb::class_<bitnet::KvCache>(m, "KvCache")
      .def_prop_ro("length", &bitnet::KvCache::length)
      .def_prop_ro("capacity", &bitnet::KvCache::capacity)
      .def("truncate", &truncate_cache, "length"_a);
  nb::class_<Engine>(m, "Engine")
      .def(nb::init<const nb::dict&, const std::string&, const std::string&, const std::string&, nb::object,
                    nb::object, nb::object, nb::object, nb::object, const nb::iterable&, std::size_t,
                    const std::string&>(),
           nb::kw_only(), "shape"_a, "hidden_act"_a, "kv_dtype"_a, "head_type"_a, "embedding"_a, "head"_a,
           "final_norm"_a, "rope_cos"_a, "rope_sin"_a, "layers"_a, "threads"_a, "isa"_a)
      .def("new_cache", &Engine::new_cache, "max_tokens"_a)
      .def("forward", &Engine::forward, "batch"_a, "all_logits"_a)
      .def("hidden_states", &Engine::hidden_states, "batch"_a)
      .def("profile", &Engine::profile)
      .def("live_shares", &Engine::live_shares)
      .def_prop_ro("isa", &Engine::isa)
      .def_prop_ro("threads", &Engine::threads);
  m.def("isa_names", [] { return names(bitnet::compiled_kernels()); });
  m.def("supported_isas", [] { return names(bitnet::supported_kernels()); });
  m.def("chosen_isa", [] { return std::string(bitnet::select_kernels("").name); });
  m.def("self_test", &self_test, "isa"_a);
  m.def("physical_cores", &bitnet::physical_cores);
  m.def("read_bandwidth", &bitnet::read_bandwidth, "threads"_a, "megabytes"_a,
        nb::call_guard<nb::gil_scoped_release>());
  m.def("quantize_int8", &quantize_int8, "x"_a, "isa"_a);
  m.def("ternary_matmul", &ternary_matmul, "x"_a, "packed"_a, "isa"_a);
  m.def("rms_norm", &rms_norm, "x"_a, "weight"_a, "eps"_a, "isa"_a);
  bitnet::bind_layers(m);
  bitnet::bind_binary(m);
}
