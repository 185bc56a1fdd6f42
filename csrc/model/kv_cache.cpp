#include "kv_cache.h"

#include <algorithm>
#include <stdexcept>

namespace bitnet {
namespace {

std::size_t bits_of(CacheType type) {
  switch (type) {
    case CacheType::int8:
      return 8;
    case CacheType::int4:
      return 4;
    case CacheType::int3:
      return 3;
    default:
      return 0;
  }
}

}  // namespace

CacheType cache_type(const std::string& name) {
  if (name == "float16") return CacheType::float16;
  if (name == "float32") return CacheType::float32;
  if (name == "int8") return CacheType::int8;
  if (name == "int4") return CacheType::int4;
  if (name == "int3") return CacheType::int3;
  throw std::invalid_argument("kv_dtype is '" + name + "'; use auto, float16, float32, int8, int4 or int3");
}

KvCache::KvCache(const Config& config, std::size_t capacity)
    : type_(config.cache_type),
      bits_(bits_of(config.cache_type)),
      layers_(config.layers),
      kv_heads_(config.kv_heads),
      head_dim_(config.head_dim),
      capacity_(capacity),
      blocks_((capacity + kKeyBlock - 1) / kKeyBlock) {
  const std::size_t blocks = layers_ * kv_heads_ * blocks_;
  if (bits_ != 0) {
    codes_ = Buffer<std::uint32_t>(blocks * KvBlock{bits_, head_dim_}.words(), false);
    if (bits_ == 3) first_ = Buffer<std::uint8_t>(first_at(layers_, 0), false);
  } else if (type_ == CacheType::float16) {
    keys16_ = Buffer<std::uint16_t>(keys_at(blocks), false);
    values16_ = Buffer<std::uint16_t>(values_at(blocks), false);
  } else {
    keys32_ = Buffer<float>(keys_at(blocks), false);
    values32_ = Buffer<float>(values_at(blocks), false);
  }
}

std::size_t KvCache::bytes() const {
  return (keys16_.size() + values16_.size()) * sizeof(std::uint16_t) +
         (keys32_.size() + values32_.size()) * sizeof(float) + codes_.size() * sizeof(std::uint32_t) +
         first_.size();
}

bool KvCache::fits(const Config& config) const {
  return type_ == config.cache_type && layers_ == config.layers && kv_heads_ == config.kv_heads &&
         head_dim_ == config.head_dim && capacity_ <= config.max_positions;
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

void KvCache::store_codes(const Kernels& kernels, std::size_t layer, std::size_t head, std::size_t position,
                          const float* key, const float* value, std::uint8_t* codes) {
  const KvBlock layout{bits_, head_dim_};
  const std::size_t j = position % kKeyBlock, bits = in_four_bits(position) ? 4 : bits_;
  std::uint32_t* words = codes_.data() + block(layer, head, position) * layout.words();
  auto* ranges = reinterpret_cast<std::uint16_t*>(words + layout.ranges()) + j;
  for (std::size_t kind = 0; kind < 2; ++kind, ranges += 2 * kKeyBlock) {
    std::uint16_t range[2];
    kernels.quantize_head(kind == 0 ? key : value, head_dim_, bits, codes + kind * head_dim_, range);
    ranges[0] = range[0];
    ranges[kKeyBlock] = range[1];
  }
  if (in_four_bits(position)) {
    std::uint8_t* first = first_.data() + first_at(layer, head);
    std::fill_n(first, padded_head(head_dim_), std::uint8_t{0});
    for (std::size_t kind = 0; kind < 2; ++kind, first += padded_head(head_dim_) / 2)
      for (std::size_t d = 0; d < head_dim_; ++d)
        first[d / 2] = static_cast<std::uint8_t>(first[d / 2] | codes[kind * head_dim_ + d] << d % 2 * 4);
    return;
  }
  for (std::size_t d = 0; d < head_dim_; ++d) {
    write_code(words + layout.keys(j), bits_, d, j % kLanes, codes[d]);
    write_code(words + layout.values(d), bits_, j, d % kLanes, codes[head_dim_ + d]);
  }
}

void KvCache::store(const Kernels& kernels, std::size_t layer, std::size_t head, std::size_t position,
                    const float* key, const float* value, std::uint8_t* scratch) {
  const std::size_t at = block(layer, head, position);
  if (bits_ != 0)
    store_codes(kernels, layer, head, position, key, value, scratch);
  else if (type_ == CacheType::float16)
    scatter(position, key, value, keys16_.data() + keys_at(at), values16_.data() + values_at(at),
            kernels.to_f16);
  else
    scatter(position, key, value, keys32_.data() + keys_at(at), values32_.data() + values_at(at),
            [](const float* x, std::size_t n, float* y) { std::copy(x, x + n, y); });
}

void KvCache::attend(const Kernels& kernels, std::size_t layer, std::size_t kv_head, std::size_t first,
                     const AttentionTile& tile, const float* q, float* scratch, float* partial) const {
  const std::size_t at = block(layer, kv_head, first);
  if (bits_ != 0) {
    const KvCodes codes{codes_.data() + at * KvBlock{bits_, head_dim_}.words(), bits_,
                        in_four_bits(first) ? first_.data() + first_at(layer, kv_head) : nullptr};
    kernels.attention_codes(tile, q, codes, scratch, partial);
  } else if (type_ == CacheType::float16) {
    kernels.attention_f16(tile, q, keys16_.data() + keys_at(at), values16_.data() + values_at(at), scratch,
                          partial);
  } else {
    kernels.attention_f32(tile, q, keys32_.data() + keys_at(at), values32_.data() + values_at(at), scratch,
                          partial);
  }
}

void KvCache::read(std::size_t layer, std::size_t head, std::size_t position, float* out) const {
  const std::size_t j = position % kKeyBlock, at = block(layer, head, position);
  if (bits_ == 0) {
    const std::size_t k = keys_at(at) + j / kLanes * head_dim_ * kLanes + j % kLanes;
    const std::size_t v = values_at(at) + j * kLanes;
    for (std::size_t d = 0; d < head_dim_; ++d) {
      const std::size_t places[] = {k + d * kLanes, v + d / kLanes * kKeyBlock * kLanes + d % kLanes};
      const bool half = type_ == CacheType::float16;
      out[d] = half ? half_value(keys16_.data()[places[0]]) : keys32_.data()[places[0]];
      out[head_dim_ + d] = half ? half_value(values16_.data()[places[1]]) : values32_.data()[places[1]];
    }
    return;
  }
  const KvBlock layout{bits_, head_dim_};
  const std::uint32_t* words = codes_.data() + at * layout.words();
  const auto* ranges = reinterpret_cast<const std::uint16_t*>(words + layout.ranges()) + j;
  const std::uint8_t* first = in_four_bits(position) ? first_.data() + first_at(layer, head) : nullptr;
  for (std::size_t kind = 0; kind < 2; ++kind, ranges += 2 * kKeyBlock) {
    for (std::size_t d = 0; d < head_dim_; ++d) {
      const std::size_t nibble = kind * padded_head(head_dim_) + d;
      const std::uint32_t code = in_four_bits(position) ? first[nibble / 2] >> nibble % 2 * 4 & 15
                                 : kind == 0 ? read_code(words + layout.keys(j), bits_, d, j % kLanes)
                                             : read_code(words + layout.values(d), bits_, j, d % kLanes);
      out[kind * head_dim_ + d] =
          restore_code(code, in_four_bits(position) ? 4 : bits_, ranges[0], ranges[kKeyBlock]);
    }
  }
}

}  // namespace bitnet
