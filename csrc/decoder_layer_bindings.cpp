// One decoder layer for one new token a sequence, in a model that another library runs and whose cache it
// keeps: two calls, as the first one ends in the cache. Arrays are float32, or bfloat16 bits
// in uint16. In between everything is float32; what goes out in bfloat16 is rounded once.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <string>
#include <vector>

#include "layer_bindings.h"
#include "model/rotary.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace bitnet {
namespace {

using F32Rows = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using F32Norm = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

float widen(std::uint16_t bits) {
  const std::uint32_t word = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof(value));
  return value;
}

// Round half to even; a NaN stays one.
std::uint16_t narrow(float value) {
  std::uint32_t word;
  std::memcpy(&word, &value, sizeof(word));
  if ((word & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<std::uint16_t>((word >> 16) | 0x40u);
  return static_cast<std::uint16_t>((word + 0x7FFFu + ((word >> 16) & 1u)) >> 16);
}

// An array of either type; exactly one pointer is set.
template <class F32, class Bits>
struct Floats {
  F32* f32 = nullptr;
  Bits* bf16 = nullptr;
  std::vector<std::size_t> shape;

  explicit Floats(nb::handle array) {
    using Bf16Array = nb::ndarray<Bits, nb::c_contig, nb::device::cpu>;
    using F32Array = nb::ndarray<F32, nb::c_contig, nb::device::cpu>;
    const auto take = [this](const auto& found, auto*& to) {
      to = found.data();
      for (std::size_t axis = 0; axis < found.ndim(); ++axis) shape.push_back(found.shape(axis));
    };
    // without conversion, which would turn float32 into whole numbers
    if (Bf16Array bits; nb::try_cast(array, bits, false))
      take(bits, bf16);
    else
      take(nb::cast<F32Array>(array, false), f32);
  }
};
using Input = Floats<const float, const std::uint16_t>;
using Output = Floats<float, std::uint16_t>;

void load(const Input& from, std::size_t first, std::size_t count, float* to) {
  if (from.f32 != nullptr)
    std::copy(from.f32 + first, from.f32 + first + count, to);
  else
    for (std::size_t i = 0; i < count; ++i) to[i] = widen(from.bf16[first + i]);
}

void store(const float* from, std::size_t count, const Output& to, std::size_t first) {
  if (to.f32 != nullptr)
    std::copy(from, from + count, to.f32 + first);
  else
    for (std::size_t i = 0; i < count; ++i) to.bf16[first + i] = narrow(from[i]);
}

class DecoderLayer {
 public:
  // linears: q, k, v, o, gate, up, down. norms: of the input, behind attention, before gate and up, before
  // down.
  DecoderLayer(std::vector<nb::object> linears, const std::vector<F32Norm>& norms, std::vector<float> eps,
               std::size_t kv_heads, std::size_t head_dim, float attention_scale,
               const std::string& hidden_act)
      : owners_(std::move(linears)),
        eps_(std::move(eps)),
        kv_heads_(kv_heads),
        head_dim_(head_dim),
        scale_(attention_scale),
        silu_(hidden_act == "silu") {
    require(owners_.size() == 7 && norms.size() == 4 && eps_.size() == 4, "7 linears, 4 norms, 4 eps");
    require(silu_ || hidden_act == "relu2", "hidden_act must be relu2 or silu");
    require(kv_heads > 0 && head_dim > 0 && head_dim % 2 == 0, "head_dim must be even, kv_heads positive");
    std::vector<const Linear*> linear;
    for (const nb::object& owner : owners_) {
      TernaryLinear& layer = nb::cast<TernaryLinear&>(owner);
      if (pool_ == nullptr) pool_ = &layer.pool;
      require(pool_ == &layer.pool, "layers of different pools");
      linear.push_back(&layer.linear);
    }
    query_ = linear[0], key_ = linear[1], value_ = linear[2], output_ = linear[3];
    gate_ = linear[4], up_ = linear[5], down_ = linear[6];
    hidden_size_ = query_->columns;
    for (const F32Norm& norm : norms) norms_.emplace_back(norm.data(), norm.data() + norm.shape(0));
    // by division: the product of the two might wrap around
    require(key_->rows % head_dim == 0 && key_->rows / head_dim == kv_heads && query_->rows % key_->rows == 0,
            "heads and projections disagree");
    require(same({key_->columns, value_->columns, gate_->columns, up_->columns, output_->rows, down_->rows,
                  norms_[0].size(), norms_[2].size()},
                 hidden_size_) &&
                value_->rows == key_->rows && same({output_->columns, norms_[1].size()}, query_->rows) &&
                same({gate_->rows, up_->rows, norms_[3].size()}, down_->columns),
            "the layers' shapes disagree");
  }

  // The query [tokens][width] of x [tokens][hidden_size], rotated by cos and sin [tokens or 1][head_dim],
  // whose second halves repeat the first; its key and value go to `position` of keys and values
  // [tokens][kv_heads][capacity][head_dim].
  void project(nb::handle x_array, nb::handle cos_array, nb::handle sin_array, const F32Rows& query,
               nb::handle keys_array, nb::handle values_array, std::size_t position) {
    const Input x(x_array), cos(cos_array), sin(sin_array);
    const Output keys(keys_array), values(values_array);
    const std::size_t tokens = check(x.shape, query, keys.shape, values.shape, position + 1);
    const std::size_t kv_size = key_->rows;
    require(
        cos.shape.size() == 2 && (cos.shape[0] == tokens || cos.shape[0] == 1) && cos.shape[1] == head_dim_,
        "cos has the wrong shape");
    require(sin.shape == cos.shape, "sin and cos differ in shape");
    float* q = query.data();
    const nb::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(pool_->mutex);
    load(x, 0, tokens * hidden_size_, hidden_.reserve(tokens * hidden_size_));
    float* key = gate_values_.reserve(tokens * kv_size);
    float* value = up_values_.reserve(tokens * kv_size);
    const std::size_t half = head_dim_ / 2;
    float *cosines = attended_.reserve(head_dim_), *sines = cosines + half;
    norm_and_quantize(hidden_.data(), tokens, 0);
    multiply(tokens, {{query_, q, query_->rows}, {key_, key, kv_size}, {value_, value, kv_size}});
    for (std::size_t t = 0; t < tokens; ++t) {
      const std::size_t row = cos.shape[0] == 1 ? 0 : t;
      load(cos, row * head_dim_, half, cosines);
      load(sin, row * head_dim_, half, sines);
      rotate(q + t * query_->rows, query_->rows / head_dim_, head_dim_, cosines, sines);
      rotate(key + t * kv_size, kv_heads_, head_dim_, cosines, sines);
    }
    for (std::size_t head = 0; head < tokens * kv_heads_; ++head) {
      const std::size_t at = (head * keys.shape[2] + position) * head_dim_;
      store(key + head * head_dim_, head_dim_, keys, at);
      store(value + head * head_dim_, head_dim_, values, at);
    }
  }

  // y [tokens][hidden_size]: the layer's output for x, whose query attends to the first `positions` of keys
  // and values [tokens][kv_heads][capacity][head_dim].
  void finish(nb::handle x_array, const F32Rows& query, nb::handle keys_array, nb::handle values_array,
              std::size_t positions, nb::handle y_array) {
    const Input x(x_array), keys(keys_array), values(values_array);
    const Output y(y_array);
    const std::size_t tokens = check(x.shape, query, keys.shape, values.shape, positions);
    const std::size_t width = gate_->rows;
    require(y.shape == x.shape, "y has the wrong shape");
    const float* q = query.data();
    const nb::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(pool_->mutex);
    float* hidden = hidden_.reserve(tokens * hidden_size_);
    float* gate = gate_values_.reserve(tokens * width);
    float* up = up_values_.reserve(tokens * width);
    load(x, 0, tokens * hidden_size_, hidden);
    attend(q, tokens, keys, values, positions);
    norm_and_quantize(attended_.data(), tokens, 1);
    multiply(tokens, {{output_, hidden, hidden_size_, true}});
    norm_and_quantize(hidden, tokens, 2);
    multiply(tokens, {{gate_, gate, width}, {up_, up, width}});
    const auto activate = silu_ ? pool_->kernels.silu_gate : pool_->kernels.relu2_gate;
    for (std::size_t t = 0; t < tokens; ++t)
      activate(gate + t * width, up + t * width, width, gate + t * width);
    norm_and_quantize(gate, tokens, 3);
    multiply(tokens, {{down_, hidden, hidden_size_, true}});
    store(hidden, tokens * hidden_size_, y, 0);
  }

 private:
  using Shape = std::vector<std::size_t>;

  // The number of tokens, once everything fits.
  std::size_t check(const Shape& x, const F32Rows& query, const Shape& keys, const Shape& values,
                    std::size_t positions) const {
    require(x.size() == 2 && x[1] == hidden_size_, "x has the wrong shape");
    require(query.shape(0) == x[0] && query.shape(1) == query_->rows, "query has the wrong shape");
    require(keys.size() == 4 && keys == Shape{x[0], kv_heads_, keys[2], head_dim_} && values == keys,
            "keys or values have the wrong shape");
    require(positions >= 1 && positions <= keys[2], "a position is outside the keys");
    return x[0];
  }

  static bool same(const std::vector<std::size_t>& sizes, std::size_t expected) {
    return std::all_of(sizes.begin(), sizes.end(), [=](std::size_t size) { return size == expected; });
  }

  void multiply(std::size_t tokens, const std::vector<LinearOutput>& outputs) {
    run_linears(pool_->kernels, pool_->threads, pool_->rows, tokens, outputs);
  }

  void norm_and_quantize(const float* x, std::size_t tokens, std::size_t which) {
    const std::vector<float>& weight = norms_[which];
    const std::size_t width = weight.size();
    pool_->rows.reserve(tokens, padded_columns(width));
    float* normed = normed_.reserve(width);
    for (std::size_t t = 0; t < tokens; ++t) {
      pool_->kernels.rms_norm(x + t * width, weight.data(), width, eps_[which], normed);
      pool_->rows.quantize(pool_->kernels, normed, width, t);
    }
  }

  // attended_ [tokens][query width] = softmax(q . k * scale) v; a task is a key/value head of a token.
  void attend(const float* q, std::size_t tokens, const Input& keys, const Input& values,
              std::size_t positions) {
    const std::size_t group = query_->rows / (kv_heads_ * head_dim_), stride = keys.shape[2] * head_dim_;
    float* attended = attended_.reserve(tokens * query_->rows);
    float* scratch = scores_.reserve(pool_->threads.threads() * positions);
    pool_->threads.run(tokens * kv_heads_, [&](std::size_t task, std::size_t thread) {
      float* scores = scratch + thread * positions;
      for (std::size_t head = task * group; head < (task + 1) * group; ++head) {
        const float divisor = weigh(q + head * head_dim_, keys, task * stride, positions, scores);
        add_up(scores, values, task * stride, positions, 1.0f / divisor, attended + head * head_dim_);
      }
    });
  }

  // scores [positions] = exp(q . k * scale - their maximum); returns their sum.
  float weigh(const float* q, const Input& keys, std::size_t first, std::size_t positions,
              float* scores) const {
    const Kernels& kernels = pool_->kernels;
    float largest = -std::numeric_limits<float>::infinity(), sum = 0.0f;
    for (std::size_t p = 0; p < positions; ++p) {
      const std::size_t at = first + p * head_dim_;
      const float dot = keys.f32 != nullptr ? kernels.dot_f32(q, keys.f32 + at, head_dim_)
                                            : kernels.dot_bf16(q, keys.bf16 + at, head_dim_);
      scores[p] = dot * scale_;
      largest = std::max(largest, scores[p]);
    }
    for (std::size_t p = 0; p < positions; ++p) sum += scores[p] = std::exp(scores[p] - largest);
    return sum;
  }

  void add_up(const float* weights, const Input& values, std::size_t first, std::size_t positions,
              float factor, float* out) const {
    std::fill(out, out + head_dim_, 0.0f);
    for (std::size_t p = 0; p < positions; ++p) {
      const float weight = weights[p] * factor;
      const std::size_t at = first + p * head_dim_;
      if (values.f32 != nullptr)
        for (std::size_t i = 0; i < head_dim_; ++i) out[i] += weight * values.f32[at + i];
      else
        for (std::size_t i = 0; i < head_dim_; ++i) out[i] += weight * widen(values.bf16[at + i]);
    }
  }

  std::vector<nb::object> owners_;
  LayerPool* pool_ = nullptr;
  const Linear *query_, *key_, *value_, *output_, *gate_, *up_, *down_;
  std::vector<std::vector<float>> norms_;
  std::vector<float> eps_;
  std::size_t hidden_size_, kv_heads_, head_dim_;
  float scale_;
  bool silu_;
  // scratch, used under the pool's mutex
  Buffer<float> hidden_, gate_values_, up_values_, attended_, normed_, scores_;
};

}  // namespace

void bind_decoder_layer(nb::module_& m) {
  nb::class_<DecoderLayer>(m, "DecoderLayer")
      .def(nb::init<std::vector<nb::object>, const std::vector<F32Norm>&, std::vector<float>, std::size_t,
                    std::size_t, float, const std::string&>(),
           "linears"_a, "norms"_a.noconvert(), "eps"_a, "kv_heads"_a, "head_dim"_a, "attention_scale"_a,
           "hidden_act"_a)
      .def("project", &DecoderLayer::project, "x"_a, "cos"_a, "sin"_a, "query"_a.noconvert(), "keys"_a,
           "values"_a, "position"_a)
      .def("finish", &DecoderLayer::finish, "x"_a, "query"_a.noconvert(), "keys"_a, "values"_a, "positions"_a,
           "y"_a);
}

}  // namespace bitnet
