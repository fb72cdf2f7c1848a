// The device's approximate functions, here exact to a rounding.
#pragma once

#include <cmath>
#include <limits>

namespace rnnfused {
namespace emulation {

// Subnormal numbers are zeros of the same sign.
inline float flush(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}

}  // namespace emulation

namespace cuda {

inline float exp2_approx(float x) { return emulation::flush(std::exp2(emulation::flush(x))); }
inline float reciprocal_approx(float x) { return emulation::flush(1.0f / emulation::flush(x)); }

}  // namespace cuda
}  // namespace rnnfused
