// 16-bit floating point by integer arithmetic: round to nearest even, NaN stays NaN.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/scalars.h"

namespace rnnfused {
namespace emulation {

inline uint32_t float_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float half_to_float(uint16_t bits);
uint16_t float_to_half(float value);

inline float bfloat16_to_float(uint16_t bits) { return float_of(uint32_t(bits) << 16); }
inline uint16_t float_to_bfloat16(float value) {
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace emulation

namespace cuda {

inline float to_float(float value) { return value; }
inline float to_float(Half value) { return emulation::half_to_float(value.bits); }
inline float to_float(BFloat16 value) { return emulation::bfloat16_to_float(value.bits); }

template <class T>
T from_float(float value);
template <>
inline float from_float<float>(float value) {
  return value;
}
template <>
inline Half from_float<Half>(float value) {
  return {emulation::float_to_half(value)};
}
template <>
inline BFloat16 from_float<BFloat16>(float value) {
  return {emulation::float_to_bfloat16(value)};
}

// Two neighbours of a 16-bit matrix in one register, the first in the lower half: an operand of mma_sync.
template <class T>
uint32_t pack(T low, T high) {
  return uint32_t(low.bits) | uint32_t(high.bits) << 16;
}

}  // namespace cuda
}  // namespace rnnfused
