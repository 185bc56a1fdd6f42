// The reference: plain loops that every other ISA must reproduce bit for bit, and the fallback for any CPU.
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels.h"
#include "kv_codes.h"

namespace bitnet {
namespace {

float half_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1fu, mantissa = half & 0x3ffu;
  std::uint32_t bits = sign;
  if (exponent == 31) {
    // inf keeps an empty mantissa; a NaN becomes quiet, as the hardware conversions make it
    bits |= 0x7f800000u | (mantissa << 13) | (mantissa != 0 ? 0x400000u : 0u);
  } else if (exponent != 0) {
    bits |= ((exponent + 112) << 23) | (mantissa << 13);
  } else {
    const float value = std::ldexp(static_cast<float>(mantissa), -24);
    return sign != 0 ? -value : value;
  }
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

std::uint16_t float_to_half(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const std::uint16_t sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u | ((bits >> 13) & 0x1ffu));
  if (bits >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65520 and more round to inf
  if (bits < 0x38800000u) {  // below 2^-14: subnormal, a multiple of 2^-24
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof(magnitude));
    return static_cast<std::uint16_t>(sign |
                                      static_cast<std::uint16_t>(std::nearbyint(std::ldexp(magnitude, 24))));
  }
  const std::uint32_t odd = (bits >> 13) & 1u;  // ties go to the even mantissa
  return static_cast<std::uint16_t>(sign | ((bits - 0x38000000u + 0xfffu + odd) >> 13));
}

struct f32x16 {
  float lane[16];

  template <class Function>
  static f32x16 make(Function f) {
    f32x16 r;
    for (int i = 0; i < 16; ++i) r.lane[i] = f(i);
    return r;
  }
  static f32x16 set1(float x) {
    return make([&](int) { return x; });
  }
  static f32x16 zero() { return set1(0.0f); }
  static f32x16 load(const float* p) {
    return make([&](int i) { return p[i]; });
  }
  static f32x16 load_bf16(const std::uint16_t* p) {
    return make([&](int i) {
      const std::uint32_t bits = static_cast<std::uint32_t>(p[i]) << 16;
      float value;
      std::memcpy(&value, &bits, sizeof(value));
      return value;
    });
  }
  static f32x16 load_f16(const std::uint16_t* p) {
    return make([&](int i) { return half_to_float(p[i]); });
  }
  static f32x16 load_i32(const std::int32_t* p) {
    return make([&](int i) { return static_cast<float>(p[i]); });
  }
  void store(float* p) const { std::memcpy(p, lane, sizeof(lane)); }
  void store_i8(std::int8_t* p) const {
    for (int i = 0; i < 16; ++i) {
      const float r = std::nearbyint(lane[i]);
      p[i] = static_cast<std::int8_t>(r < -128.0f ? -128.0f : r > 127.0f ? 127.0f : r);
    }
  }
  void store_f16(std::uint16_t* p) const {
    for (int i = 0; i < 16; ++i) p[i] = float_to_half(lane[i]);
  }
  f32x16 abs() const {
    return make([&](int i) { return std::fabs(lane[i]); });
  }
  f32x16 round() const {
    return make([&](int i) { return std::nearbyint(lane[i]); });
  }
  f32x16 pow2() const {
    return make(
        [&](int i) { return lane[i] == lane[i] ? std::ldexp(1.0f, static_cast<int>(lane[i])) : 1.0f; });
  }
  float sum() const {
    f32x16 r = *this;
    for (int width = 8; width >= 1; width /= 2)
      for (int i = 0; i < width; ++i) r.lane[i] += r.lane[i + width];
    return r.lane[0];
  }
  float largest() const {
    float r = lane[0];
    for (float x : lane) r = x > r ? x : r;
    return r;
  }
};

f32x16 operator+(f32x16 a, f32x16 b) {
  return f32x16::make([&](int i) { return a.lane[i] + b.lane[i]; });
}
f32x16 operator-(f32x16 a, f32x16 b) {
  return f32x16::make([&](int i) { return a.lane[i] - b.lane[i]; });
}
f32x16 operator*(f32x16 a, f32x16 b) {
  return f32x16::make([&](int i) { return a.lane[i] * b.lane[i]; });
}
f32x16 operator/(f32x16 a, f32x16 b) {
  return f32x16::make([&](int i) { return a.lane[i] / b.lane[i]; });
}
f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return f32x16::make([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
}
f32x16 max(f32x16 a, f32x16 b) {
  return f32x16::make([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}

// Sixteen words of packed codes (kv_codes.h).
struct u32x16 {
  std::uint32_t lane[16];

  template <class Function>
  static u32x16 make(Function f) {
    u32x16 r;
    for (int i = 0; i < 16; ++i) r.lane[i] = f(i);
    return r;
  }
  static u32x16 set1(std::uint32_t x) {
    return make([&](int) { return x; });
  }
  static u32x16 load(const std::uint32_t* p) {
    return make([&](int i) { return p[i]; });
  }
  template <int Bits>
  u32x16 right() const {
    return make([&](int i) { return lane[i] >> Bits; });
  }
  template <int Bits>
  u32x16 left() const {
    return make([&](int i) { return lane[i] << Bits; });
  }
  f32x16 to_float() const {
    return f32x16::make([&](int i) { return static_cast<float>(lane[i]); });
  }
};

u32x16 operator&(u32x16 a, u32x16 b) {
  return u32x16::make([&](int i) { return a.lane[i] & b.lane[i]; });
}
u32x16 operator|(u32x16 a, u32x16 b) {
  return u32x16::make([&](int i) { return a.lane[i] | b.lane[i]; });
}

#include "float_kernels.h"

void ternary_gemm(const std::uint8_t* weights, std::size_t rows, std::size_t columns, const std::int8_t* x,
                  const std::int32_t* x_sums, std::size_t tokens, std::int32_t* y, std::size_t y_stride) {
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t n = 0; n < rows; ++n) {
      const std::uint8_t* row = weights + n * (columns / 4);
      const std::int8_t* token = x + t * columns;
      std::int32_t sum = 0;
      for (std::size_t block = 0; block < columns / kBlockWeights; ++block) {
        for (std::size_t j = 0; j < kBlockBytes; ++j)
          for (std::size_t field = 0; field < 4; ++field)
            sum += ((row[j] >> (2 * field)) & 3) * token[32 * field + j];
        row += kBlockBytes;
        token += kBlockWeights;
      }
      y[t * y_stride + n] = sum - x_sums[t];
    }
  }
}

void nibble_gemm(const std::uint8_t* weights, std::size_t rows, std::size_t columns, const std::int8_t* x,
                 const std::int32_t* x_sums, std::size_t tokens, std::int32_t* y, std::size_t y_stride) {
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t n = 0; n < rows; ++n) {
      const std::uint8_t* row = weights + n * (columns / 2);
      const std::int8_t* token = x + t * columns;
      std::int32_t sum = 0;
      for (std::size_t k = 0; k < columns; k += 2 * kBlockBytes, row += kBlockBytes, token += 2 * kBlockBytes)
        for (std::size_t j = 0; j < kBlockBytes; ++j)
          sum += (row[j] & 15) * token[j] + (row[j] >> 4) * token[kBlockBytes + j];
      y[t * y_stride + n] = sum - 8 * x_sums[t];
    }
  }
}

void sign_gemm(const std::uint8_t* weights, std::size_t rows, std::size_t columns, const std::int8_t* x,
               const std::int32_t* x_sums, std::size_t tokens, std::int32_t* y, std::size_t y_stride) {
  for (std::size_t t = 0; t < tokens; ++t) {
    for (std::size_t n = 0; n < rows; ++n) {
      const std::uint8_t* row = weights + n * (columns / 8);
      const std::int8_t* token = x + t * columns;
      std::int32_t positive = 0;
      for (std::size_t block = 0; block < columns / kBlockWeights; ++block) {
        for (std::size_t j = 0; j < kSignBlockBytes; ++j)
          for (std::size_t bit = 0; bit < 8; ++bit) positive += ((row[j] >> bit) & 1) * token[16 * bit + j];
        row += kSignBlockBytes;
        token += kBlockWeights;
      }
      y[t * y_stride + n] = 2 * positive - x_sums[t];
    }
  }
}

void ternary_rows(const std::uint8_t* weights, const std::uint32_t* rows, std::size_t count,
                  std::size_t columns, const std::int8_t* x, std::int32_t x_sum, std::int32_t* y) {
  for (std::size_t i = 0; i < count; ++i)
    ternary_gemm(weights + rows[i] * (columns / 4), 1, columns, x, &x_sum, 1, y + i, 1);
}

void ternary_columns(const std::uint8_t* matrix, std::size_t stride, std::size_t chunks, ColumnList list,
                     ColumnList /*next*/, std::int32_t* y) {
  for (std::size_t i = 0; i < list.count; ++i) {
    const std::uint8_t* column = matrix + list.columns[i] * stride;
    for (std::size_t n = 0; n < chunks * kChunkRows; ++n) {
      const std::size_t row = n % kChunkRows;
      const unsigned byte = column[n / kChunkRows * kChunkBytes + row % kChunkBytes];
      y[n] += static_cast<int>((byte >> (row / kChunkBytes * 2)) & 3) * list.x[i];
    }
  }
}

constexpr Kernels scalar_table =
    with_float_kernels({"scalar", ternary_gemm, ternary_rows, ternary_columns, nibble_gemm, sign_gemm});

}  // namespace

const Kernels scalar_kernels = scalar_table;

}  // namespace bitnet
