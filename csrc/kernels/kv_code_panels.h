// Panels of codes for attention_kernel.h, restored to float32 one at a time; included by it and subject to
// the rules of float_kernels.h.
template <std::size_t Bits>
class RestoredPanels {
 public:
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

  // Of 3 bits: whether the block's first position has codes of its own.
  bool has_first() const { return first_ != nullptr; }

  // The panels as codes; not where the first position is apart.
  auto key_codes(std::size_t position) const {
    const f32x16 low = range(KvRange::key_low, position);
    const f32x16 step = step_from(low, range(KvRange::key_high, position));
    const f32x16 base = low + step * f32x16::set1(0.5f);
    return code_panel(layout_.keys(position),
                      [=](std::size_t, u32x16 codes) { return codes.to_float() * step + base; });
  }
  auto value_codes(std::size_t component) const {
    return code_panel(layout_.values(component), [this](std::size_t j, u32x16 codes) {
      return codes.to_float() * f32x16::set1(value_step_[j]) + f32x16::set1(value_base_[j]);
    });
  }

  StoredPanel<F32Source> keys(std::size_t position) {
    restore(key_codes(position), layout_.head_dim);
    if (has_first() && position == 0) restore_first(KvRange::key_low, 0, layout_.head_dim, kLanes);
    return {scratch_};
  }
  StoredPanel<F32Source> values(std::size_t component) {
    restore(value_codes(component), kKeyBlock);
    if (has_first()) restore_first(KvRange::value_low, padded_head(layout_.head_dim) + component, kLanes, 1);
    return {scratch_};
  }

  // The same panels without a way through memory.
  struct Fused {
    RestoredPanels& panels;

    void begin_block() { panels.begin_block(); }
    void end_block() { panels.end_block(); }
    auto keys(std::size_t position) const { return panels.key_codes(position); }
    auto values(std::size_t component) const { return panels.value_codes(component); }
  };

 private:
  template <class Restore>
  CodePanel<Bits, Restore> code_panel(std::size_t at, Restore restore) const {
    return {block_ + at, restore};
  }
  template <class Panel>
  void restore(const Panel& panel, std::size_t vectors) {
    each_vector<Bits>(panel.words, vectors, [&](std::size_t i, u32x16 codes) {
      panel.restore(i, codes).store(scratch_ + i * kLanes);
    });
  }
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
