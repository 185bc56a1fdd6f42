#include "kv_codes.h"

#include <cmath>
#include <limits>

namespace bitnet {
namespace {

struct Field {
  std::size_t word, shift;
  std::uint32_t mask;
};

// Where a vector's code lies: its low bits, which are all of them but for 3 bits.
Field low_field(std::size_t bits, std::size_t vector) {
  if (bits == 3) return {vector / 32 * 3 + vector % 32 / 16, vector % 16 * 2, 3};
  const std::size_t group = 32 / bits;
  return {vector / group, vector % group * bits, (1u << bits) - 1};
}

Field high_field(std::size_t vector) {
  return {vector / 32 * 3 + 2, vector % 32, 1};
}

}  // namespace

std::uint32_t read_code(const std::uint32_t* panel, std::size_t bits, std::size_t vector, std::size_t lane) {
  const auto read = [&](Field field) {
    return panel[field.word * kLanes + lane] >> field.shift & field.mask;
  };
  const std::uint32_t low = read(low_field(bits, vector));
  return bits == 3 ? low | read(high_field(vector)) << 2 : low;
}

void write_code(std::uint32_t* panel, std::size_t bits, std::size_t vector, std::size_t lane,
                std::uint32_t code) {
  const auto write = [&](Field field, std::uint32_t value) {
    std::uint32_t& word = panel[field.word * kLanes + lane];
    word = (word & ~(field.mask << field.shift)) | (value & field.mask) << field.shift;
  };
  write(low_field(bits, vector), code);
  if (bits == 3) write(high_field(vector), code >> 2);
}

float half_value(std::uint16_t half) {
  const int exponent = half >> 10 & 31, mantissa = half & 1023;
  float value = std::ldexp(static_cast<float>(exponent == 0 ? mantissa : mantissa + 1024),
                           exponent == 0 ? -24 : exponent - 25);
  if (exponent == 31)
    value = mantissa == 0 ? std::numeric_limits<float>::infinity() : std::numeric_limits<float>::quiet_NaN();
  return (half & 0x8000) != 0 ? -value : value;
}

float restore_code(std::uint32_t code, std::size_t bits, std::uint16_t low, std::uint16_t high) {
  const float start = half_value(low), step = (half_value(high) - start) / static_cast<float>(1u << bits);
  return static_cast<float>(code) * step + (start + step * 0.5f);
}

}  // namespace bitnet
