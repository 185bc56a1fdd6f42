// Sixteen float lanes as one AVX-512 register, for float_kernels.h. avx512_vnni.cpp includes it inside its
// anonymous namespace.

struct f32x16 {
  __m512 all;

  static f32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
  static f32x16 zero() { return {_mm512_setzero_ps()}; }
  static f32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static f32x16 load_bf16(const std::uint16_t* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load256(p)), 16))};
  }
  static f32x16 load_f16(const std::uint16_t* p) { return {_mm512_cvtph_ps(load256(p))}; }
  static f32x16 load_i32(const std::int32_t* p) { return {_mm512_cvtepi32_ps(_mm512_loadu_si512(p))}; }
  void store(float* p) const { _mm512_storeu_ps(p, all); }
  void store_i8(std::int8_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(all)));
  }
  void store_f16(std::uint16_t* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(all, _MM_FROUND_TO_NEAREST_INT));
  }
  f32x16 abs() const { return {_mm512_abs_ps(all)}; }
  f32x16 round() const { return {_mm512_roundscale_ps(all, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  f32x16 pow2() const {
    const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(all), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
  }
  // Halves, quarters, pairs: the tree float_kernels.h prescribes.
  float sum() const {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
  }
  float largest() const { return _mm512_reduce_max_ps(all); }

 private:
  static __m256i load256(const std::uint16_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
};

f32x16 operator+(f32x16 a, f32x16 b) {
  return {_mm512_add_ps(a.all, b.all)};
}
f32x16 operator-(f32x16 a, f32x16 b) {
  return {_mm512_sub_ps(a.all, b.all)};
}
f32x16 operator*(f32x16 a, f32x16 b) {
  return {_mm512_mul_ps(a.all, b.all)};
}
f32x16 operator/(f32x16 a, f32x16 b) {
  return {_mm512_div_ps(a.all, b.all)};
}
f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return {_mm512_fmadd_ps(a.all, b.all, c.all)};
}
f32x16 max(f32x16 a, f32x16 b) {
  return {_mm512_max_ps(a.all, b.all)};
}

// Sixteen words of packed codes (kv_codes.h).
struct u32x16 {
  __m512i all;

  static u32x16 set1(std::uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
  static u32x16 load(const std::uint32_t* p) { return {_mm512_loadu_si512(p)}; }
  template <int Bits>
  u32x16 right() const {
    return {_mm512_srli_epi32(all, Bits)};
  }
  template <int Bits>
  u32x16 left() const {
    return {_mm512_slli_epi32(all, Bits)};
  }
  f32x16 to_float() const { return {_mm512_cvtepi32_ps(all)}; }
};

u32x16 operator&(u32x16 a, u32x16 b) {
  return {_mm512_and_si512(a.all, b.all)};
}
u32x16 operator|(u32x16 a, u32x16 b) {
  return {_mm512_or_si512(a.all, b.all)};
}
