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
#include "cache_bindings.h"
#include "kernel_bindings.h"
#include "kernels/binary_kernels.h"
#include "layer_bindings.h"
#include "model/bandwidth.h"
#include "model/transformer.h"
#include "weight_arrays.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using bitnet::Kernels;
using bitnet::new_array;
using bitnet::require;
using Ids = nb::ndarray<const std::int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

std::string check_choice(const std::string& value, const char* first, const char* second, const char* name) {
  require(value == first || value == second,
          std::string(name) + " is '" + value + "'; use " + first + " or " + second);
  return value;
}

// What f returns; for calls that wait for a lock, which a forward of another thread may hold for seconds.
template <class Function>
auto without_gil(Function f) {
  const nb::gil_scoped_release release;
  return f();
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
    const auto size = [&](const char* name) {
      const auto value = nb::cast<std::size_t>(shape[name]);
      // so that the product of two of them never wraps around
      require(value >= 1 && value < std::size_t{1} << 31, std::string(name) + " must be in 1..2^31-1");
      return value;
    };
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
    require(config.heads % config.kv_heads == 0 && config.head_dim % 2 == 0,
            "heads must be a multiple of key/value heads, head_dim even");
    if (check_choice(hidden_act, "relu2", "silu", "hidden_act") == "silu")
      config.activation = bitnet::Activation::silu;
    config.cache_type = bitnet::cache_type(kv_dtype);
    if (check_choice(head_type, "full", "shortlist", "head") == "shortlist")
      config.head_type = bitnet::HeadType::shortlist;
    bitnet::Weights weights;
    weights.embedding = bitnet::view_table(embedding_, config.vocab_size, config.hidden_size, "embedding");
    weights.head = bitnet::view_table(head_, config.vocab_size, config.hidden_size, "head");
    weights.final_norm = bitnet::read_vector(final_norm, config.hidden_size, "final_norm");
    weights.rope_cos = bitnet::read_table(rope_cos, config.max_positions, config.head_dim / 2, "rope_cos");
    weights.rope_sin = bitnet::read_table(rope_sin, config.max_positions, config.head_dim / 2, "rope_sin");
    bitnet::ThreadPool pool(threads);
    // One after the other: a layer that was decoded for us can go before the next one comes.
    for (nb::handle layer : layers)
      weights.layers.push_back(bitnet::read_layer(config, nb::cast<nb::dict>(layer), pool));
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
    const bitnet::Profile profile = without_gil([&] { return transformer_->profile(); });
    std::vector<std::pair<std::string, double>> parts;
    for (std::size_t i = 0; i < bitnet::kParts; ++i)
      parts.emplace_back(bitnet::kPartNames[i], profile.seconds()[i]);
    return parts;
  }

  // Mean shares of live rows of up and live columns of down over single tokens; none before the first.
  std::optional<std::pair<double, double>> live_shares() const {
    const bitnet::LiveShares shares = without_gil([&] { return transformer_->live_shares(); });
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

}  // namespace

NB_MODULE(_core, m) {
  bitnet::bind_cache(m);
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
  bitnet::bind_kernels(m);
  bitnet::bind_layers(m);
  bitnet::bind_binary(m);
}
