// The keys and values of one sequence: for each layer and key/value head, [capacity][head_dim], as float16
// bits or float32. A head's positions are contiguous, because attention reads them in order.
#pragma once

#include <cstdint>

#include "../kernels/kernels.h"
#include "buffer.h"
#include "config.h"

namespace bitnet {

class KvCache {
 public:
  KvCache(const Config& config, std::size_t capacity);

  std::size_t length() const { return length_; }
  std::size_t capacity() const { return capacity_; }
  void set_length(std::size_t length) { length_ = length; }
  bool fits(const Config& config) const;

  // Stores one position of one layer: key and value are float32 [kv_heads * head_dim], keys after RoPE.
  void store(const Kernels& kernels, std::size_t layer, std::size_t position, const float* key,
             const float* value);
  // Attention of one query head over positions 0..keys-1; q and out are float32 [head_dim].
  void attend(const Kernels& kernels, std::size_t layer, std::size_t kv_head, const float* q,
              std::size_t keys, float scale, float* out) const;

 private:
  std::size_t offset(std::size_t layer, std::size_t kv_head, std::size_t position) const {
    return ((layer * kv_heads_ + kv_head) * capacity_ + position) * head_dim_;
  }

  CacheType type_;
  std::size_t layers_, kv_heads_, head_dim_, capacity_, length_ = 0;
  Buffer<std::uint16_t> keys16_, values16_;  // one pair is used, by type_
  Buffer<float> keys32_, values32_;
};

}  // namespace bitnet
