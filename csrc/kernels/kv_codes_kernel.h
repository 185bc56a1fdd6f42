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
    // Moved to where the high bit of the word's first vector is bit 2 of its code.
    if (Bits == 3)
      high = v % 32 == 0 ? u32x16::load(words + 2 * kLanes).template left<2>()
                         : u32x16::load(words + kLanes).template right<14>();
    const auto next = [&](std::size_t i) {
      u32x16 code = low & mask;
      if (Bits == 3) {
        code = code | (high & four);
        high = high.template right<1>();
      }
      f(i, code);
      low = low.template right<static_cast<int>(kLowBits)>();
    };
    if (v + kVectors <= n)  // a constant number of turns, for the compiler
      for (std::size_t i = 0; i < kVectors; ++i) next(v + i);
    else
      for (std::size_t i = v; i < n; ++i) next(i);
    if (Bits == 3 && v % 32 != 0) words += kLanes;  // over the high bits
  }
}
