// The floating-point kernels, written once over sixteen lanes.
//
// Every ISA file includes this inside its anonymous namespace (internal linkage: the linker must never
// merge an AVX copy into the scalar build), after defining `f32x16` with the operations used below. As a
// sum is always the same tree over the same sixteen lanes and every fused multiply-add is explicit, the
// result does not depend on how wide the registers are.
//
// f32x16 provides: zero, set1, load, load_bf16, load_f16, load_i32, store, store_i8, store_f16, +, -, *, /,
// fma(a, b, c) = a * b + c, max(a, b) = a > b ? a : b, abs, round, pow2 (2^n for an integral n in [-126,
// 127], anything for NaN), sum (lanes i and i+8, then +4, +2, +1), largest. u32x16, for packed codes: set1,
// load, right<n>, left<n>, &, |, to_float (of numbers below 2^24).

struct F32Source {
  using type = float;
  static f32x16 load(const float* p) { return f32x16::load(p); }
};
struct Bf16Source {
  using type = std::uint16_t;
  static f32x16 load(const std::uint16_t* p) { return f32x16::load_bf16(p); }
};
struct F16Source {
  using type = std::uint16_t;
  static f32x16 load(const std::uint16_t* p) { return f32x16::load_f16(p); }
};

// The first `count` lanes from memory, zero in the others.
template <class Source>
f32x16 load_tail(const typename Source::type* p, std::size_t count) {
  alignas(64) typename Source::type lanes[kLanes] = {};
  std::memcpy(lanes, p, count * sizeof(lanes[0]));
  return Source::load(lanes);
}

void store_tail(float* p, f32x16 value, std::size_t count) {
  alignas(64) float lanes[kLanes];
  value.store(lanes);
  std::memcpy(p, lanes, count * sizeof(float));
}

// y[i] = f(offset i, source lanes...) over n elements: whole vectors, then one partial vector.
template <class Function>
void map(std::size_t n, float* y, Function f) {
  std::size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, kLanes).store(y + i);
  if (i < n) store_tail(y + i, f(i, n - i), n - i);
}

template <class Source>
f32x16 load_some(const typename Source::type* p, std::size_t count) {
  return count == kLanes ? Source::load(p) : load_tail<Source>(p, count);
}

// Four accumulators hide the latency of the fused multiply-add.
template <class Source>
float dot(const float* x, const typename Source::type* row, std::size_t n) {
  f32x16 a0 = f32x16::zero(), a1 = a0, a2 = a0, a3 = a0;
  std::size_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    a0 = fma(f32x16::load(x + i), Source::load(row + i), a0);
    a1 = fma(f32x16::load(x + i + 16), Source::load(row + i + 16), a1);
    a2 = fma(f32x16::load(x + i + 32), Source::load(row + i + 32), a2);
    a3 = fma(f32x16::load(x + i + 48), Source::load(row + i + 48), a3);
  }
  for (; i < n; i += kLanes) {
    const std::size_t count = n - i < kLanes ? n - i : kLanes;
    a0 = fma(load_some<F32Source>(x + i, count), load_some<Source>(row + i, count), a0);
  }
  return ((a0 + a1) + (a2 + a3)).sum();
}

float dot_bf16(const float* x, const std::uint16_t* row, std::size_t n) {
  return dot<Bf16Source>(x, row, n);
}

float dot_f32(const float* x, const float* row, std::size_t n) {
  return dot<F32Source>(x, row, n);
}

void rms_norm(const float* x, const float* weight, std::size_t n, float eps, float* y) {
  const float mean = dot<F32Source>(x, x, n) / static_cast<float>(n);
  const f32x16 inverse = f32x16::set1(1.0f / std::sqrt(mean + eps));
  map(n, y, [&](std::size_t i, std::size_t count) {
    return load_some<F32Source>(x + i, count) * inverse * load_some<F32Source>(weight + i, count);
  });
}

void quantize(const float* x, std::size_t n, std::size_t padded, std::int8_t* codes, float* scale,
              std::int32_t* sum) {
  f32x16 largest = f32x16::zero(), not_finite = largest;
  for (std::size_t i = 0; i < n; i += kLanes) {
    const f32x16 v = load_some<F32Source>(x + i, n - i < kLanes ? n - i : kLanes);
    largest = max(v.abs(), largest);
    not_finite = fma(v, f32x16::zero(), not_finite);  // 0 * inf and 0 * NaN are NaN
  }
  std::memset(codes, 0, padded);
  *sum = 0;
  if (!(not_finite.sum() == 0.0f)) {
    *scale = std::numeric_limits<float>::quiet_NaN();
    return;
  }
  const float absmax = largest.largest();
  *scale = 127.0f / (absmax > 1e-5f ? absmax : 1e-5f);
  const f32x16 factor = f32x16::set1(*scale);
  for (std::size_t i = 0; i < n; i += kLanes) {
    const std::size_t count = n - i < kLanes ? n - i : kLanes;
    alignas(16) std::int8_t lanes[kLanes];
    (load_some<F32Source>(x + i, count) * factor).store_i8(lanes);
    std::memcpy(codes + i, lanes, count);
  }
  std::int32_t total = 0;
  for (std::size_t i = 0; i < n; ++i) total += codes[i];
  *sum = total;
}

void dequantize(const std::int32_t* x, std::size_t n, float factor, const float* bias, float* y) {
  const f32x16 scale = f32x16::set1(factor);
  map(n, y, [&](std::size_t i, std::size_t count) {
    alignas(64) std::int32_t lanes[kLanes] = {};
    std::memcpy(lanes, x + i, count * sizeof(lanes[0]));
    const f32x16 value = f32x16::load_i32(lanes) * scale;
    return bias == nullptr ? value : value + load_some<F32Source>(bias + i, count);
  });
}

void relu2_gate(const float* gate, const float* up, std::size_t n, float* y) {
  map(n, y, [&](std::size_t i, std::size_t count) {
    const f32x16 positive = max(f32x16::zero(), load_some<F32Source>(gate + i, count));  // keeps NaN
    return positive * positive * load_some<F32Source>(up + i, count);
  });
}

// exp(x) for x <= 88: x = n ln 2 + r with |r| <= ln(2)/2, a degree-6 polynomial for e^r (relative error
// below 2e-7), times 2^n. ln 2 is split in two floats so that n * ln 2 is subtracted without rounding
// (Cody & Waite). Below -87 the result is 2^-126 and below, which softmax and silu round away: clamp. NaN
// stays.
f32x16 exp(f32x16 x) {
  const f32x16 clamped = max(f32x16::set1(-87.0f), x);
  const f32x16 n = (clamped * f32x16::set1(1.44269504088896341f)).round();
  f32x16 r = fma(n, f32x16::set1(-0.693359375f), clamped);
  r = fma(n, f32x16::set1(2.12194440e-4f), r);
  f32x16 p = f32x16::set1(1.0f / 720.0f);
  p = fma(p, r, f32x16::set1(1.0f / 120.0f));
  p = fma(p, r, f32x16::set1(1.0f / 24.0f));
  p = fma(p, r, f32x16::set1(1.0f / 6.0f));
  p = fma(p, r, f32x16::set1(0.5f));
  p = fma(p, r, f32x16::set1(1.0f));
  p = fma(p, r, f32x16::set1(1.0f));
  return p * n.pow2();
}

// The same for one number: exp1(0) is exactly 1, and attention mostly asks for that.
float exp1(float x) {
  if (x == 0.0f) return 1.0f;
  alignas(64) float lanes[kLanes];
  exp(f32x16::set1(x)).store(lanes);
  return lanes[0];
}

void silu_gate(const float* gate, const float* up, std::size_t n, float* y) {
  const f32x16 one = f32x16::set1(1.0f), zero = f32x16::zero();
  map(n, y, [&](std::size_t i, std::size_t count) {
    const f32x16 g = load_some<F32Source>(gate + i, count);
    // e^-|g| never overflows: g >= 0 gives g / (1 + e), g < 0 gives g e / (1 + e).
    const f32x16 e = exp(zero - g.abs());
    const f32x16 positive = max(g, zero), negative = g - positive;
    return fma(negative, e, positive) / (one + e) * load_some<F32Source>(up + i, count);
  });
}

#include "kv_codes_kernel.h"

#include "attention_kernel.h"

void to_f16(const float* x, std::size_t n, std::uint16_t* y) {
  for (std::size_t i = 0; i < n; i += kLanes) {
    const std::size_t count = n - i < kLanes ? n - i : kLanes;
    alignas(32) std::uint16_t lanes[kLanes];
    load_some<F32Source>(x + i, count).store_f16(lanes);
    std::memcpy(y + i, lanes, count * sizeof(lanes[0]));
  }
}

// An ISA's table: its own integer kernels, and the float kernels above. constexpr, because code compiled for
// an instruction set must not run before anybody has asked whether the CPU has it, static initialisers
// included.
struct IntegerKernels {
  const char* name;
  decltype(Kernels::ternary_gemm) ternary_gemm;
  decltype(Kernels::ternary_rows) ternary_rows;
  decltype(Kernels::ternary_columns) ternary_columns;
  decltype(Kernels::nibble_gemm) nibble_gemm;
  decltype(Kernels::sign_gemm) sign_gemm;
  decltype(Kernels::ternary_gemm_many) ternary_gemm_many = nullptr;
  std::size_t fewest_many = 0;
  decltype(Kernels::sign_gemm_many) sign_gemm_many = nullptr;
  std::size_t fewest_signs = 0;
  decltype(Kernels::ternary_gemm_small) ternary_gemm_small = nullptr;
  std::size_t fewest_small = 0;
};

constexpr Kernels with_float_kernels(IntegerKernels own) {
  Kernels table{};
  table.name = own.name;
  table.ternary_gemm = own.ternary_gemm;
  table.ternary_gemm_many = own.ternary_gemm_many;
  table.fewest_many = own.fewest_many;
  table.sign_gemm_many = own.sign_gemm_many;
  table.fewest_signs = own.fewest_signs;
  table.ternary_gemm_small = own.ternary_gemm_small;
  table.fewest_small = own.fewest_small;
  table.ternary_rows = own.ternary_rows;
  table.ternary_columns = own.ternary_columns;
  table.nibble_gemm = own.nibble_gemm;
  table.sign_gemm = own.sign_gemm;
  table.quantize = quantize;
  table.rms_norm = rms_norm;
  table.dequantize = dequantize;
  table.relu2_gate = relu2_gate;
  table.silu_gate = silu_gate;
  table.dot_bf16 = dot_bf16;
  table.dot_f32 = dot_f32;
  table.attention_f16 = attention_f16;
  table.attention_f32 = attention_f32;
  table.attention_codes = attention_codes;
  table.attention_merge = attention_merge;
  table.attention_finish = attention_finish;
  table.quantize_head = quantize_head;
  table.to_f16 = to_f16;
  return table;
}
