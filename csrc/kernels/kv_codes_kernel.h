// Quantised keys and values, written once over sixteen lanes; included by float_kernels.h and subject to its
// rules. quantize/kv_cache.py is the definition, and every operation here one of its operations.

void quantize_head(const float* x, std::size_t n, std::size_t bits, std::uint8_t* codes,
                   std::uint16_t* range) {
  const f32x16 zero = f32x16::zero(), half = f32x16::set1(0.5f);
  // The last lanes repeat x[0]: they must not widen the range.
  const auto load = [&](std::size_t i) {
    if (i + kLanes <= n) return f32x16::load(x + i);
    alignas(64) float lanes[kLanes];
    for (std::size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = i + lane < n ? x[i + lane] : x[0];
    return f32x16::load(lanes);
  };
  f32x16 largest = load(0), smallest = zero - largest, not_finite = zero;  // smallest: of -x, the largest
  for (std::size_t i = 0; i < n; i += kLanes) {
    const f32x16 v = load(i);
    largest = max(v, largest);
    smallest = max(zero - v, smallest);
    not_finite = fma(v, zero, not_finite);  // 0 * inf and 0 * NaN are NaN
  }
  std::memset(codes, 0, n);
  if (!(not_finite.sum() == 0.0f)) {
    range[0] = range[1] = 0x7e00;
    return;
  }
  const auto within = [](float end) {
    const float low = end < -65504.0f ? -65504.0f : end;
    return (low > 65504.0f ? 65504.0f : low) + 0.0f;  // -0 becomes +0
  };
  alignas(64) float ends[kLanes] = {within(-smallest.largest()), within(largest.largest())};
  alignas(32) std::uint16_t halves[kLanes];
  f32x16::load(ends).store_f16(halves);
  std::memcpy(range, halves, 2 * sizeof(halves[0]));
  f32x16::load_f16(halves).store(ends);
  const float width = ends[1] - ends[0], levels = static_cast<float>(1u << bits);
  const f32x16 low = f32x16::set1(ends[0]), factor = f32x16::set1(width > 0.0f ? levels / width : 0.0f);
  const f32x16 lowest_negated = f32x16::set1(1.0f - levels), offset = f32x16::set1(128.0f);
  for (std::size_t i = 0; i < n; i += kLanes) {
    const f32x16 code = max(((load(i) - low) * factor - half).round(), zero);
    const f32x16 clipped = zero - max(zero - code, lowest_negated);  // at most levels - 1
    alignas(16) std::int8_t lanes[kLanes];
    (clipped - offset).store_i8(lanes);
    for (std::size_t lane = 0; lane < kLanes && i + lane < n; ++lane)
      codes[i + lane] = static_cast<std::uint8_t>(lanes[lane] + 128);
  }
}

// Calls f(vector, its codes) for the first n vectors of a panel.
template <std::size_t Bits, class Function>
void each_vector(const std::uint32_t* words, std::size_t n, Function f) {
  constexpr std::size_t kLowBits = Bits == 3 ? 2 : Bits, kVectors = 32 / kLowBits;  // a word
  const u32x16 mask = u32x16::set1((1u << kLowBits) - 1), four = u32x16::set1(4);
  u32x16 high = u32x16::set1(0);
  for (std::size_t v = 0; v < n; v += kVectors, words += kLanes) {
    u32x16 low = u32x16::load(words);
    if (Bits == 3 && v % 32 == 0) high = u32x16::load(words + 2 * kLanes);
    for (std::size_t i = v; i < n && i < v + kVectors; ++i) {
      u32x16 code = low & mask;
      if (Bits == 3) {
        code = code | (high.template left<2>() & four);
        high = high.template right<1>();
      }
      f(i, code);
      low = low.template right<static_cast<int>(kLowBits)>();
    }
    if (Bits == 3 && v % 32 != 0) words += kLanes;  // over the high bits
  }
}

// A block's panels for attention_kernel.h, restored to float32 one at a time.
template <std::size_t Bits>
class RestoredPanels {
 public:
  using Source = F32Source;

  RestoredPanels(const AttentionTile& tile, const KvCodes& codes, float* scratch)
      : layout_{Bits, tile.head_dim}, block_(codes.blocks), first_(codes.first), scratch_(scratch) {}

  void begin_block() {
    for (std::size_t j = 0; j < kKeyBlock; j += kLanes) {
      const f32x16 low = range(KvRange::value_low, j), step = step_from(low, range(KvRange::value_high, j));
      step.store(value_step_ + j);
      (low + step * f32x16::set1(0.5f)).store(value_base_ + j);
    }
  }

  void end_block() {
    block_ += layout_.words();
    first_ = nullptr;
  }

  const float* keys(std::size_t position) {
    const f32x16 low = range(KvRange::key_low, position);
    const f32x16 step = step_from(low, range(KvRange::key_high, position));
    const f32x16 base = low + step * f32x16::set1(0.5f);
    each_vector<Bits>(block_ + layout_.keys(position), layout_.head_dim, [&](std::size_t d, u32x16 codes) {
      (codes.to_float() * step + base).store(scratch_ + d * kLanes);
    });
    if (first_ != nullptr && position == 0) restore_first(KvRange::key_low, 0, layout_.head_dim, kLanes);
    return scratch_;
  }

  const float* values(std::size_t component) {
    each_vector<Bits>(block_ + layout_.values(component), kKeyBlock, [&](std::size_t j, u32x16 codes) {
      (codes.to_float() * f32x16::set1(value_step_[j]) + f32x16::set1(value_base_[j]))
          .store(scratch_ + j * kLanes);
    });
    if (first_ != nullptr)
      restore_first(KvRange::value_low, padded_head(layout_.head_dim) + component, kLanes, 1);
    return scratch_;
  }

 private:
  // Sixteen positions' ends of one kind.
  f32x16 range(KvRange kind, std::size_t position) const {
    const auto* halves = reinterpret_cast<const std::uint16_t*>(block_ + layout_.ranges());
    return f32x16::load_f16(halves + static_cast<std::size_t>(kind) * kKeyBlock + position);
  }
  static f32x16 step_from(f32x16 low, f32x16 high) {
    return (high - low) * f32x16::set1(1.0f / static_cast<float>(1u << Bits));
  }

  // `count` 4-bit codes of the first position from `from` on, into every `stride`-th float of the panel.
  void restore_first(KvRange low_kind, std::size_t from, std::size_t count, std::size_t stride) {
    alignas(64) float low[kLanes], high[kLanes];
    range(low_kind, 0).store(low);
    range(static_cast<KvRange>(static_cast<std::size_t>(low_kind) + 1), 0).store(high);
    const float step = (high[0] - low[0]) * (1.0f / 16.0f), base = low[0] + step * 0.5f;
    for (std::size_t i = from; i < from + count; ++i)
      scratch_[(i - from) * stride] = static_cast<float>(first_[i / 2] >> i % 2 * 4 & 15) * step + base;
  }

  KvBlock layout_;
  const std::uint32_t* block_;
  const std::uint8_t* first_;
  float* scratch_;
  alignas(64) float value_step_[kKeyBlock];
  alignas(64) float value_base_[kKeyBlock];
};
