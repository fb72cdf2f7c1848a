#include "emulation/half.h"

#include <cmath>

namespace rnnfused {
namespace emulation {

float half_to_float(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16;
  const uint32_t exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return float_of(sign | 0x7f800000 | fraction << 13);
  if (exponent != 0) return float_of(sign | (exponent + 112) << 23 | fraction << 13);
  const float value = std::ldexp(float(fraction), -24);
  return sign ? -value : value;
}

uint16_t float_to_half(float value) {
  const uint32_t bits = float_bits(value), magnitude = bits & 0x7fffffff;
  const auto sign = uint16_t(bits >> 16 & 0x8000);
  if (magnitude > 0x7f800000) return 0x7fff;
  if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);  // halfway above the largest half, and more
  if (magnitude < 0x38800000) {
    // Subnormal: the result counts 2^-24, and the current rounding mode is to nearest even.
    return uint16_t(sign | uint16_t(std::nearbyint(std::ldexp(float_of(magnitude), 24))));
  }
  const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  return uint16_t(sign | (rounded - 0x38000000) >> 13);
}

}  // namespace emulation
}  // namespace rnnfused
