#include "kv_cache.h"

#include <cstring>

namespace bitnet {

KvCache::KvCache(const Config& config, std::size_t capacity)
    : type_(config.cache_type),
      layers_(config.layers),
      kv_heads_(config.kv_heads),
      head_dim_(config.head_dim),
      capacity_(capacity) {
  const std::size_t size = layers_ * kv_heads_ * capacity_ * head_dim_;
  if (type_ == CacheType::float16) {
    keys16_ = Buffer<std::uint16_t>(size);
    values16_ = Buffer<std::uint16_t>(size);
  } else {
    keys32_ = Buffer<float>(size);
    values32_ = Buffer<float>(size);
  }
}

bool KvCache::fits(const Config& config) const {
  return type_ == config.cache_type && layers_ == config.layers && kv_heads_ == config.kv_heads &&
         head_dim_ == config.head_dim;
}

void KvCache::store(const Kernels& kernels, std::size_t layer, std::size_t position, const float* key,
                    const float* value) {
  for (std::size_t head = 0; head < kv_heads_; ++head) {
    const std::size_t to = offset(layer, head, position), from = head * head_dim_;
    if (type_ == CacheType::float16) {
      kernels.to_f16(key + from, head_dim_, keys16_.data() + to);
      kernels.to_f16(value + from, head_dim_, values16_.data() + to);
    } else {
      std::memcpy(keys32_.data() + to, key + from, head_dim_ * sizeof(float));
      std::memcpy(values32_.data() + to, value + from, head_dim_ * sizeof(float));
    }
  }
}

void KvCache::attend(const Kernels& kernels, std::size_t layer, std::size_t kv_head, const float* q,
                     std::size_t keys, float scale, float* out) const {
  const std::size_t from = offset(layer, kv_head, 0);
  if (type_ == CacheType::float16)
    kernels.attention_f16(q, keys16_.data() + from, values16_.data() + from, keys, head_dim_, scale, out);
  else
    kernels.attention_f32(q, keys32_.data() + from, values32_.data() + from, keys, head_dim_, scale, out);
}

}  // namespace bitnet
