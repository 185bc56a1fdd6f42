#include "kv_cache.h"

#include <algorithm>

namespace bitnet {

KvCache::KvCache(const Config& config, std::size_t capacity)
    : type_(config.cache_type),
      layers_(config.layers),
      kv_heads_(config.kv_heads),
      head_dim_(config.head_dim),
      capacity_(capacity),
      blocks_((capacity + kKeyBlock - 1) / kKeyBlock) {
  const std::size_t positions = layers_ * kv_heads_ * blocks_ * kKeyBlock;
  const std::size_t keys = positions * head_dim_, values = positions * padded_head(head_dim_);
  if (type_ == CacheType::float16) {
    keys16_ = Buffer<std::uint16_t>(keys, false);
    values16_ = Buffer<std::uint16_t>(values, false);
  } else {
    keys32_ = Buffer<float>(keys, false);
    values32_ = Buffer<float>(values, false);
  }
}

bool KvCache::fits(const Config& config) const {
  return type_ == config.cache_type && layers_ == config.layers && kv_heads_ == config.kv_heads &&
         head_dim_ == config.head_dim;
}

// convert(x, n, y) turns n floats into the cache's type.
template <class T, class Convert>
void KvCache::scatter(std::size_t position, const float* key, const float* value, T* keys, T* values,
                      Convert convert) const {
  const std::size_t j = position % kKeyBlock;
  keys += j / kLanes * head_dim_ * kLanes + j % kLanes;
  values += j * kLanes;
  for (std::size_t d = 0; d < head_dim_; d += kLanes, values += kKeyBlock * kLanes) {
    const std::size_t count = std::min(kLanes, head_dim_ - d);
    T lanes[kLanes];
    convert(key + d, count, lanes);
    for (std::size_t i = 0; i < count; ++i) keys[(d + i) * kLanes] = lanes[i];
    convert(value + d, count, values);
  }
}

void KvCache::store(const Kernels& kernels, std::size_t layer, std::size_t position, const float* key,
                    const float* value) {
  for (std::size_t head = 0; head < kv_heads_; ++head, key += head_dim_, value += head_dim_) {
    const std::size_t k = keys_at(layer, head, position), v = values_at(layer, head, position);
    if (type_ == CacheType::float16)
      scatter(position, key, value, keys16_.data() + k, values16_.data() + v, kernels.to_f16);
    else
      scatter(position, key, value, keys32_.data() + k, values32_.data() + v,
              [](const float* x, std::size_t n, float* y) { std::copy(x, x + n, y); });
  }
}

void KvCache::attend(const Kernels& kernels, std::size_t layer, std::size_t kv_head, std::size_t first,
                     const AttentionTile& tile, const float* q, float* scratch, float* partial) const {
  const std::size_t k = keys_at(layer, kv_head, first), v = values_at(layer, kv_head, first);
  if (type_ == CacheType::float16)
    kernels.attention_f16(tile, q, keys16_.data() + k, values16_.data() + v, scratch, partial);
  else
    kernels.attention_f32(tile, q, keys32_.data() + k, values32_.data() + v, scratch, partial);
}

}  // namespace bitnet
