// Sixteen float lanes as four NEON registers, for float_kernels.h. The NEON files include it inside their
// anonymous namespaces and are subject to the rules there.

struct f32x16 {
  float32x4_t part[4];

  template <class Function>
  static f32x16 make(Function f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  static f32x16 set1(float x) {
    return make([&](int) { return vdupq_n_f32(x); });
  }
  static f32x16 zero() { return set1(0.0f); }
  static f32x16 load(const float* p) {
    return make([&](int i) { return vld1q_f32(p + 4 * i); });
  }
  static f32x16 load_bf16(const std::uint16_t* p) {
    return make([&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
  }
  static f32x16 load_f16(const std::uint16_t* p) {
    return make([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
  }
  static f32x16 load_i32(const std::int32_t* p) {
    return make([&](int i) { return vcvtq_f32_s32(vld1q_s32(p + 4 * i)); });
  }
  void store(float* p) const {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, part[i]);
  }
  void store_i8(std::int8_t* p) const {
    int16x8_t half[2];
    for (int i = 0; i < 2; ++i)
      half[i] =
          vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(part[2 * i])), vqmovn_s32(vcvtnq_s32_f32(part[2 * i + 1])));
    vst1q_s8(p, vcombine_s8(vqmovn_s16(half[0]), vqmovn_s16(half[1])));
  }
  void store_f16(std::uint16_t* p) const {
    for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(part[i])));
  }
  f32x16 abs() const {
    return make([&](int i) { return vabsq_f32(part[i]); });
  }
  f32x16 round() const {
    return make([&](int i) { return vrndnq_f32(part[i]); });
  }
  f32x16 pow2() const {
    return make([&](int i) {
      return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(part[i]), vdupq_n_s32(127)), 23));
    });
  }
  float sum() const {
    const float32x4_t four = vaddq_f32(vaddq_f32(part[0], part[2]), vaddq_f32(part[1], part[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }
  float largest() const {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(part[0], part[1]), vmaxq_f32(part[2], part[3])));
  }
};

f32x16 operator+(f32x16 a, f32x16 b) {
  return f32x16::make([&](int i) { return vaddq_f32(a.part[i], b.part[i]); });
}
f32x16 operator-(f32x16 a, f32x16 b) {
  return f32x16::make([&](int i) { return vsubq_f32(a.part[i], b.part[i]); });
}
f32x16 operator*(f32x16 a, f32x16 b) {
  return f32x16::make([&](int i) { return vmulq_f32(a.part[i], b.part[i]); });
}
f32x16 operator/(f32x16 a, f32x16 b) {
  return f32x16::make([&](int i) { return vdivq_f32(a.part[i], b.part[i]); });
}
f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return f32x16::make([&](int i) { return vfmaq_f32(c.part[i], a.part[i], b.part[i]); });
}
// a > b ? a : b, also where one is NaN; vmaxq_f32 would differ from x86 there.
f32x16 max(f32x16 a, f32x16 b) {
  return f32x16::make(
      [&](int i) { return vbslq_f32(vcgtq_f32(a.part[i], b.part[i]), a.part[i], b.part[i]); });
}

// Sixteen words of packed codes (kv_codes.h).
struct u32x16 {
  uint32x4_t part[4];

  template <class Function>
  static u32x16 make(Function f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  static u32x16 set1(std::uint32_t x) {
    return make([&](int) { return vdupq_n_u32(x); });
  }
  static u32x16 load(const std::uint32_t* p) {
    return make([&](int i) { return vld1q_u32(p + 4 * i); });
  }
  template <int Bits>
  u32x16 right() const {
    return make([&](int i) { return vshrq_n_u32(part[i], Bits); });
  }
  template <int Bits>
  u32x16 left() const {
    return make([&](int i) { return vshlq_n_u32(part[i], Bits); });
  }
  f32x16 to_float() const {
    return f32x16::make([&](int i) { return vcvtq_f32_u32(part[i]); });
  }
};

u32x16 operator&(u32x16 a, u32x16 b) {
  return u32x16::make([&](int i) { return vandq_u32(a.part[i], b.part[i]); });
}
u32x16 operator|(u32x16 a, u32x16 b) {
  return u32x16::make([&](int i) { return vorrq_u32(a.part[i], b.part[i]); });
}
