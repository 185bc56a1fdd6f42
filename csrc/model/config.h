// The shape of a model as C++ needs it; bitnet/config.py has checked it before.
#pragma once

#include <cstddef>

namespace bitnet {

enum class Activation { relu2, silu };
enum class CacheType { float16, float32, int8, int4, int3 };
enum class HeadType { full, shortlist };

struct Config {
  std::size_t vocab_size;
  std::size_t hidden_size;
  std::size_t intermediate_size;
  std::size_t layers;
  std::size_t heads;
  std::size_t kv_heads;
  std::size_t head_dim;
  std::size_t max_positions;
  float rms_norm_eps;
  Activation activation;
  CacheType cache_type;
  HeadType head_type;

  std::size_t query_size() const { return heads * head_dim; }
  std::size_t key_value_size() const { return kv_heads * head_dim; }
};

}  // namespace bitnet
