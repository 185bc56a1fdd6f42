// The keys and values of one sequence: for each layer and key/value head, blocks of 64 positions in the
// layout that attention reads (kernels.h), as float16 bits or float32.
//
// Nothing is cleared when a cache is truncated: attention never uses a position from `length` on.
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
  // A tile's partial attention from position `first` on, a multiple of 64; tile.keys and tile.end count from
  // there.
  void attend(const Kernels& kernels, std::size_t layer, std::size_t kv_head, std::size_t first,
              const AttentionTile& tile, const float* q, float* scratch, float* partial) const;

 private:
  // Where the block of 64 that holds a position begins, in keys and in values.
  std::size_t block(std::size_t layer, std::size_t head, std::size_t position) const {
    return ((layer * kv_heads_ + head) * blocks_ + position / kKeyBlock) * kKeyBlock;
  }
  std::size_t keys_at(std::size_t layer, std::size_t head, std::size_t position) const {
    return block(layer, head, position) * head_dim_;
  }
  std::size_t values_at(std::size_t layer, std::size_t head, std::size_t position) const {
    return block(layer, head, position) * padded_head(head_dim_);
  }
  template <class T, class Convert>
  void scatter(std::size_t position, const float* key, const float* value, T* keys, T* values,
               Convert convert) const;

  CacheType type_;
  std::size_t layers_, kv_heads_, head_dim_, capacity_, blocks_, length_ = 0;
  Buffer<std::uint16_t> keys16_, values16_;  // one pair is used, by type_
  Buffer<float> keys32_, values32_;
};

}  // namespace bitnet
