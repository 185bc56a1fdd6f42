// Attention of a tile of queries over cached keys and values, written once over sixteen lanes; included by
// float_kernels.h and subject to its rules.
//
// Both products, q . k and p . v, have one form: sums[row] += a[row][i] * panel[i], where a panel is n
// vectors of sixteen lanes, one behind the other. For scores the lanes are sixteen keys and i runs over
// head_dim; for the output they are sixteen components of v and i runs over positions. No sum crosses lanes,
// a loaded vector serves every row of the tile, and each row's operations are those it would see alone.

// Rows whose sums are in registers at a time. 4 are 8 AVX2 registers, which hide the latency of the fused
// multiply-add (4 cycles, 2 a cycle). On Zen 4, 6 and 8 were no faster, with AVX-512 neither, and 8 spill
// with AVX2.
constexpr std::size_t kRegisterRows = 4;

template <std::size_t Rows>
struct Sums {
  f32x16 row[Rows];
};

// Vector i of a panel is b.
template <std::size_t Rows>
void add_product(Sums<Rows>& sums, const float* a, std::size_t stride, std::size_t i, f32x16 b) {
  for (std::size_t r = 0; r < Rows; ++r) sums.row[r] = fma(f32x16::set1(a[r * stride + i]), b, sums.row[r]);
}

// A panel as it lies in memory.
template <class Source>
struct StoredPanel {
  const typename Source::type* data;

  template <std::size_t Rows>
  Sums<Rows> add_products(Sums<Rows> sums, const float* a, std::size_t stride, std::size_t first,
                          std::size_t end) const {
    for (std::size_t i = first; i < end; ++i)
      add_product(sums, a, stride, i, Source::load(data + i * kLanes));
    return sums;
  }
};

// A panel of codes that is restored on its way through the registers.
template <std::size_t Bits, class Restore>
struct CodePanel {
  const std::uint32_t* words;
  Restore restore;  // (vector, its codes) -> f32x16

  template <std::size_t Rows>
  Sums<Rows> add_products(Sums<Rows> sums, const float* a, std::size_t stride, std::size_t first,
                          std::size_t end) const {
    if (first == end) return sums;
    each_vector<Bits>(words, end, [&](std::size_t i, u32x16 codes) {
      if (i >= first) add_product(sums, a, stride, i, restore(i, codes));
    });
    return sums;
  }
};

// Calls f(first row, constant number of rows) until all rows are done.
template <class Function>
void by_register_rows(std::size_t rows, Function f) {
  std::size_t r = 0;
  for (; r + kRegisterRows <= rows; r += kRegisterRows)
    f(r, std::integral_constant<std::size_t, kRegisterRows>());
  if (r + 2 <= rows) {
    f(r, std::integral_constant<std::size_t, 2>());
    r += 2;
  }
  if (r < rows) f(r, std::integral_constant<std::size_t, 1>());
}

// What follows the `width` sums of a row in a partial result. The sums still have to be multiplied by kShrink
// while a block is in progress.
enum RowState : std::size_t { kMax, kSum, kShrink };

// Turns one row's scores of a block into e^(score - max), 0 from position `visible` on, and updates its
// state.
void softmax_block(float* scores, std::size_t visible, float* state) {
  for (std::size_t j = visible; j < kKeyBlock; ++j) scores[j] = -std::numeric_limits<float>::infinity();
  // max drops a NaN, so that lanes and their order cannot matter; exp brings it back
  f32x16 largest = f32x16::set1(-std::numeric_limits<float>::infinity());
  for (std::size_t j = 0; j < kKeyBlock; j += kLanes) largest = max(f32x16::load(scores + j), largest);
  const float block_max = largest.largest(), old_max = state[kMax];
  state[kMax] = block_max > old_max ? block_max : old_max;
  const f32x16 maximum = f32x16::set1(state[kMax]);
  for (std::size_t j = 0; j < kKeyBlock; j += kLanes)
    exp(f32x16::load(scores + j) - maximum).store(scores + j);
  for (std::size_t j = visible; j < kKeyBlock; ++j) scores[j] = 0.0f;
  f32x16 sum = f32x16::zero();
  for (std::size_t j = 0; j < kKeyBlock; j += kLanes) sum = sum + f32x16::load(scores + j);
  state[kShrink] = exp1(old_max - state[kMax]);
  state[kSum] = state[kSum] * state[kShrink] + sum.sum();
}

// Keys and values as they are stored, used where they lie.
template <class Stored>
class StoredPanels {
 public:
  using Element = typename Stored::type;

  StoredPanels(const AttentionTile& tile, const Element* k, const Element* v)
      : head_dim_(tile.head_dim), k_(k), v_(v) {}

  void begin_block() {}
  void end_block() {
    k_ += kKeyBlock * head_dim_;
    v_ += kKeyBlock * padded_head(head_dim_);
  }
  // The panel of sixteen positions from `position` on, and that of sixteen components from `component` on.
  StoredPanel<Stored> keys(std::size_t position) { return {k_ + position * head_dim_}; }
  StoredPanel<Stored> values(std::size_t component) { return {v_ + component * kKeyBlock}; }

 private:
  std::size_t head_dim_;
  const Element *k_, *v_;
};

// The same converted to float32 a panel at a time, which pays from the second use on.
template <class Stored>
class WidenedPanels {
 public:
  WidenedPanels(const AttentionTile& tile, StoredPanels<Stored> stored, float* scratch)
      : head_dim_(tile.head_dim), stored_(stored), scratch_(scratch) {}

  void begin_block() {}
  void end_block() { stored_.end_block(); }
  StoredPanel<F32Source> keys(std::size_t position) {
    return widen(stored_.keys(position).data, kLanes * head_dim_);
  }
  StoredPanel<F32Source> values(std::size_t component) {
    return widen(stored_.values(component).data, kLanes * kKeyBlock);
  }

 private:
  StoredPanel<F32Source> widen(const typename Stored::type* from, std::size_t n) {
    for (std::size_t i = 0; i < n; i += kLanes) Stored::load(from + i).store(scratch_ + i);
    return {scratch_};
  }

  std::size_t head_dim_;
  StoredPanels<Stored> stored_;
  float* scratch_;
};

#include "kv_code_panels.h"

// One block of kKeyBlock positions, of which the tile's last token sees `keys - first`.
template <class Panels>
void attend_block(const AttentionTile& tile, std::size_t first, const float* q, Panels& panels, float* scores,
                  float* partial) {
  const std::size_t rows = tile.tokens * tile.heads, width = padded_head(tile.head_dim);
  const std::size_t stride = width + kLanes;
  const auto visible = [&](std::size_t row) {
    const std::size_t keys = tile.keys - (tile.tokens - 1 - row / tile.heads) - first;
    return keys < kKeyBlock ? keys : kKeyBlock;
  };
  const f32x16 scale = f32x16::set1(tile.scale);
  panels.begin_block();
  for (std::size_t j = 0; j < visible(rows - 1); j += kLanes) {
    const auto panel = panels.keys(j);
    by_register_rows(rows, [&](std::size_t r, auto count) {
      Sums<count> sums;
      for (f32x16& sum : sums.row) sum = f32x16::zero();
      sums = panel.add_products(sums, q + r * tile.head_dim, tile.head_dim, 0, tile.head_dim);
      for (std::size_t i = 0; i < count; ++i) (sums.row[i] * scale).store(scores + (r + i) * kKeyBlock + j);
    });
  }
  for (std::size_t r = 0; r < rows; ++r)
    softmax_block(scores + r * kKeyBlock, visible(r), partial + r * stride + width);
  for (std::size_t d = 0; d < width; d += kLanes) {
    const auto panel = panels.values(d);
    by_register_rows(rows, [&](std::size_t r, auto count) {
      Sums<count> sums;
      float* out = partial + r * stride;
      for (std::size_t i = 0; i < count; ++i)
        sums.row[i] = f32x16::load(out + i * stride + d) * f32x16::set1(out[i * stride + width + kShrink]);
      const float* p = scores + r * kKeyBlock;
      const std::size_t common = visible(r);
      sums = panel.add_products(sums, p, kKeyBlock, 0, common);
      for (std::size_t i = 0; i < count; ++i) {  // later tokens see further
        const Sums<1> one =
            panel.add_products(Sums<1>{{sums.row[i]}}, p + i * kKeyBlock, 0, common, visible(r + i));
        one.row[0].store(out + i * stride + d);
      }
    });
  }
  panels.end_block();
}

// One token's few rows use a panel once: it need not go through memory. With 3 bits that pays only where
// sixteen lanes are one register: with AVX2 the four rows' sums and the codes do not fit the registers (2.1
// times float16's time instead of 1.7).
template <std::size_t Bits>
void attend_block(const AttentionTile& tile, std::size_t first, const float* q, RestoredPanels<Bits>& panels,
                  float* scores, float* partial) {
  constexpr bool kPays = Bits != 3 || alignof(f32x16) == 64;
  if (kPays && tile.tokens == 1 && tile.heads <= kRegisterRows && !panels.has_first()) {
    typename RestoredPanels<Bits>::Fused fused{panels};
    attend_block<typename RestoredPanels<Bits>::Fused>(tile, first, q, fused, scores, partial);
  } else {
    attend_block<RestoredPanels<Bits>>(tile, first, q, panels, scores, partial);
  }
}

// `scratch` is what is left of it behind the panel's part.
template <class Panels>
void attend(const AttentionTile& tile, const float* q, Panels&& panels, float* scratch, float* partial) {
  const std::size_t rows = tile.tokens * tile.heads, width = padded_head(tile.head_dim);
  float* const scores = scratch;
  float* const queries = scores + kKeyBlock * rows;
  for (std::size_t t = 0; t < tile.tokens; ++t)
    std::memcpy(queries + t * tile.heads * tile.head_dim, q + t * tile.stride,
                tile.heads * tile.head_dim * sizeof(float));
  std::memset(partial, 0, tile.partial_size() * sizeof(float));
  for (std::size_t r = 0; r < rows; ++r)
    partial[r * (width + kLanes) + width + kMax] = -std::numeric_limits<float>::infinity();
  for (std::size_t first = 0; first < tile.end; first += kKeyBlock)
    attend_block(tile, first, queries, panels, scores, partial);
}

void attention_f16(const AttentionTile& tile, const float* q, const std::uint16_t* k, const std::uint16_t* v,
                   float* scratch, float* partial) {
  StoredPanels<F16Source> stored(tile, k, v);
  float* const rest = scratch + tile.panel_size();
  if (tile.tokens * tile.heads > kRegisterRows)
    attend(tile, q, WidenedPanels<F16Source>(tile, stored, scratch), rest, partial);
  else
    attend(tile, q, stored, rest, partial);
}

void attention_f32(const AttentionTile& tile, const float* q, const float* k, const float* v, float* scratch,
                   float* partial) {
  attend(tile, q, StoredPanels<F32Source>(tile, k, v), scratch + tile.panel_size(), partial);
}

void attention_codes(const AttentionTile& tile, const float* q, const KvCodes& codes, float* scratch,
                     float* partial) {
  float* const rest = scratch + tile.panel_size();
  switch (codes.bits) {
    case 8:
      return attend(tile, q, RestoredPanels<8>(tile, codes, scratch), rest, partial);
    case 4:
      return attend(tile, q, RestoredPanels<4>(tile, codes, scratch), rest, partial);
    default:
      return attend(tile, q, RestoredPanels<3>(tile, codes, scratch), rest, partial);
  }
}

void attention_merge(const AttentionTile& tile, const float* later, float* partial) {
  const std::size_t width = padded_head(tile.head_dim);
  for (std::size_t r = 0; r < tile.tokens * tile.heads;
       ++r, later += width + kLanes, partial += width + kLanes) {
    float* left = partial + width;
    const float* right = later + width;
    const float old_max = left[kMax];
    left[kMax] = right[kMax] > old_max ? right[kMax] : old_max;
    const float keep = exp1(old_max - left[kMax]), add = exp1(right[kMax] - left[kMax]);
    left[kSum] = left[kSum] * keep + right[kSum] * add;
    const f32x16 keeps = f32x16::set1(keep), adds = f32x16::set1(add);
    for (std::size_t d = 0; d < width; d += kLanes)
      fma(f32x16::load(later + d), adds, f32x16::load(partial + d) * keeps).store(partial + d);
  }
}

void attention_finish(const AttentionTile& tile, const float* partial, float* out) {
  const std::size_t width = padded_head(tile.head_dim);
  for (std::size_t r = 0; r < tile.tokens * tile.heads; ++r, partial += width + kLanes) {
    const f32x16 divisor = f32x16::set1(partial[width + kSum]);
    map(tile.head_dim, out + r / tile.heads * tile.stride + r % tile.heads * tile.head_dim,
        [&](std::size_t d, std::size_t) { return f32x16::load(partial + d) / divisor; });
  }
}
