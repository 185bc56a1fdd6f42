// The keys and values of one sequence: for each layer and key/value head, blocks of 64 positions in the
// layout that attention reads, as float16 bits or float32 (kernels.h), or in 8, 4 or 3 bits (kv_codes.h).
//
// Nothing is cleared when a cache is truncated: attention never uses a position from `length` on.
#pragma once

#include <cstdint>
#include <string>

#include "../kernels/kv_codes.h"
#include "buffer.h"
#include "config.h"

namespace bitnet {

// By its name, "float16" for example; throws std::invalid_argument, listing the choices, for another one.
CacheType cache_type(const std::string& name);

class KvCache {
 public:
  KvCache(const Config& config, std::size_t capacity);

  std::size_t length() const { return length_; }
  std::size_t capacity() const { return capacity_; }
  std::size_t bytes() const;  // reserved; those of positions that were never reached cost no memory
  void set_length(std::size_t length) { length_ = length; }
  // Whether a model of this configuration can go on with it: the shapes are its own, and no position is
  // beyond those it knows.
  bool fits(const Config& config) const;

  // Stores one position of one layer and key/value head: key and value are float32 [head_dim], the key after
  // RoPE. Positions of one block and head must not be stored at the same time: their codes share words.
  // scratch: 2 * head_dim bytes.
  void store(const Kernels& kernels, std::size_t layer, std::size_t kv_head, std::size_t position,
             const float* key, const float* value, std::uint8_t* scratch);
  // A tile's partial attention from position `first` on, a multiple of 64; tile.keys and tile.end count from
  // there.
  void attend(const Kernels& kernels, std::size_t layer, std::size_t kv_head, std::size_t first,
              const AttentionTile& tile, const float* q, float* scratch, float* partial) const;
  // What a stored position and head was rounded to, key then value, float32 [2 * head_dim].
  void read(std::size_t layer, std::size_t kv_head, std::size_t position, float* key_and_value) const;

  std::size_t layers() const { return layers_; }
  std::size_t kv_heads() const { return kv_heads_; }
  std::size_t head_dim() const { return head_dim_; }

 private:
  // The number of the block of 64 that holds a position.
  std::size_t block(std::size_t layer, std::size_t head, std::size_t position) const {
    return (layer * kv_heads_ + head) * blocks_ + position / kKeyBlock;
  }
  std::size_t keys_at(std::size_t block) const { return block * kKeyBlock * head_dim_; }
  std::size_t values_at(std::size_t block) const { return block * kKeyBlock * padded_head(head_dim_); }
  // Where the first position's 4-bit codes begin (KvCodes::first).
  std::size_t first_at(std::size_t layer, std::size_t head) const {
    return (layer * kv_heads_ + head) * padded_head(head_dim_);
  }
  bool in_four_bits(std::size_t position) const { return bits_ == 3 && position == 0; }
  template <class T, class Convert>
  void scatter(std::size_t position, const float* key, const float* value, T* keys, T* values,
               Convert convert) const;
  // codes [2 * head_dim]: scratch, of the key, then of the value.
  void store_codes(const Kernels& kernels, std::size_t layer, std::size_t head, std::size_t position,
                   const float* key, const float* value, std::uint8_t* codes);

  CacheType type_;
  std::size_t bits_;  // of a code; 0 for floats
  std::size_t layers_, kv_heads_, head_dim_, capacity_, blocks_, length_ = 0;
  Buffer<std::uint16_t> keys16_, values16_;  // by type_, one pair or `codes_` is used
  Buffer<float> keys32_, values32_;
  Buffer<std::uint32_t> codes_;
  Buffer<std::uint8_t> first_;  // of 3 bits
};

}  // namespace bitnet
