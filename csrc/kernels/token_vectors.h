// Vectors over tokens, int16 a token, for kernels that look sums up in tables. The AVX files include it
// inside their anonymous namespaces, as they do float_kernels.h.

// An entry of 16 tokens, and one of 32: one register with AVX-512, two without. Register is what tables are
// built with.
struct i16x16 {
  using Register = i16x16;
  static constexpr std::size_t kTokens = 16;
  __m256i all;

  static i16x16 zero() { return {_mm256_setzero_si256()}; }
  static i16x16 origin() { return zero(); }  // what a table stores for a sum of 0
  static i16x16 load(const std::int16_t* p) {
    return {_mm256_load_si256(reinterpret_cast<const __m256i*>(p))};
  }
  static i16x16 widen(const std::int8_t* p) {
    return {_mm256_cvtepi8_epi16(_mm_load_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  i16x16 operator+(i16x16 other) const { return {_mm256_add_epi16(all, other.all)}; }
  i16x16 operator-(i16x16 other) const { return {_mm256_sub_epi16(all, other.all)}; }
  void store(std::int16_t* p) const { _mm256_store_si256(reinterpret_cast<__m256i*>(p), all); }
  void add_to(std::int32_t* p) const {
    auto* to = reinterpret_cast<__m256i*>(p);
    const __m256i low = _mm256_cvtepi16_epi32(_mm256_castsi256_si128(all));
    const __m256i high = _mm256_cvtepi16_epi32(_mm256_extracti128_si256(all, 1));
    _mm256_store_si256(to, _mm256_add_epi32(_mm256_load_si256(to), low));
    _mm256_store_si256(to + 1, _mm256_add_epi32(_mm256_load_si256(to + 1), high));
  }
};

#if defined(__AVX512BW__)
struct i16x32 {
  using Register = i16x32;
  static constexpr std::size_t kTokens = 32;
  __m512i all;

  static i16x32 zero() { return {_mm512_setzero_si512()}; }
  static i16x32 origin() { return zero(); }
  static i16x32 load(const std::int16_t* p) { return {_mm512_load_si512(p)}; }
  static i16x32 widen(const std::int8_t* p) {
    return {_mm512_cvtepi8_epi16(_mm256_load_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  i16x32 operator+(i16x32 other) const { return {_mm512_add_epi16(all, other.all)}; }
  i16x32 operator-(i16x32 other) const { return {_mm512_sub_epi16(all, other.all)}; }
  void store(std::int16_t* p) const { _mm512_store_si512(p, all); }
  void add_to(std::int32_t* p) const {
    const __m512i low = _mm512_cvtepi16_epi32(_mm512_castsi512_si256(all));
    const __m512i high = _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(all, 1));
    _mm512_store_si512(p, _mm512_add_epi32(_mm512_load_si512(p), low));
    _mm512_store_si512(p + 16, _mm512_add_epi32(_mm512_load_si512(p + 16), high));
  }
};
#else
struct i16x32 {
  using Register = i16x16;
  static constexpr std::size_t kTokens = 32;
  i16x16 low, high;

  static i16x32 zero() { return {i16x16::zero(), i16x16::zero()}; }
  static i16x32 load(const std::int16_t* p) { return {i16x16::load(p), i16x16::load(p + 16)}; }
  i16x32 operator+(i16x32 other) const { return {low + other.low, high + other.high}; }
  void store(std::int16_t* p) const {
    low.store(p);
    high.store(p + 16);
  }
  void add_to(std::int32_t* p) const {
    low.add_to(p);
    high.add_to(p + 16);
  }
};
#endif

// out[column][token] for 16 tokens and 8 columns, zeros for tokens that are missing. Four rounds of
// interleaving each vector with the one half the list away are a transposition.
template <std::size_t OutStride>
void transpose_tokens(const std::int8_t* x, std::size_t x_stride, std::size_t tokens, std::int8_t* out) {
  __m128i row[16], a[8], b[8];
  for (std::size_t t = 0; t < 16; ++t)
    row[t] = t < tokens ? _mm_loadl_epi64(reinterpret_cast<const __m128i*>(x + t * x_stride))
                        : _mm_setzero_si128();
  for (std::size_t i = 0; i < 8; ++i) a[i] = _mm_unpacklo_epi8(row[i], row[i + 8]);
  const auto interleave = [](const __m128i* from, __m128i* to) {
    for (std::size_t i = 0; i < 4; ++i) {
      to[2 * i] = _mm_unpacklo_epi8(from[i], from[i + 4]);
      to[2 * i + 1] = _mm_unpackhi_epi8(from[i], from[i + 4]);
    }
  };
  interleave(a, b);
  interleave(b, a);
  interleave(a, b);
  for (std::size_t i = 0; i < 8; ++i) _mm_store_si128(reinterpret_cast<__m128i*>(out + i * OutStride), b[i]);
}

// y[t][r] = total[r][t], in squares of eight by eight.
template <class Entry>
void store_sums(const std::int32_t* total, std::size_t rows, std::size_t tokens, std::int32_t* y,
                std::size_t y_stride) {
  std::size_t r = 0;
  for (; r + 8 <= rows; r += 8) {
    for (std::size_t t = 0; t < tokens; t += 8) {
      __m256i a[8], b[8];
      for (std::size_t i = 0; i < 8; ++i)
        a[i] = _mm256_load_si256(reinterpret_cast<const __m256i*>(total + (r + i) * Entry::kTokens + t));
      for (std::size_t i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
      }
      for (std::size_t i = 0; i < 8; i += 4) {
        a[i] = _mm256_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
      }
      for (std::size_t i = 0; i < 4; ++i) {
        b[i] = _mm256_permute2x128_si256(a[i], a[i + 4], 0x20);
        b[i + 4] = _mm256_permute2x128_si256(a[i], a[i + 4], 0x31);
      }
      for (std::size_t i = 0; i < 8 && t + i < tokens; ++i)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(y + (t + i) * y_stride + r), b[i]);
    }
  }
  for (; r < rows; ++r)
    for (std::size_t t = 0; t < tokens; ++t) y[t * y_stride + r] = total[r * Entry::kTokens + t];
}
