// Numbers as they are stored, read and rounded by the definition of their format alone.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/scalars.h"

namespace rnnfused::test {

template <class S>
struct Format {
  static double value(S x) { return double(x); }
  static S nearest(double x) { return S(x); }
};

// Of so many binary digits, the first of which is not stored, from 2^kLowest on; rounded to the nearest, and
// of two to the even one.
template <class S, int kDigits, int kLowest>
struct NarrowFormat {
  static constexpr int kStoredDigits = kDigits - 1, kBias = 1 - kLowest;

  static double value(S x) {
    const int exponent = (x.bits & 0x7fff) >> kStoredDigits, digits = x.bits & ((1 << kStoredDigits) - 1);
    const double sign = x.bits >> 15 ? -1 : 1;
    if (exponent == 0) return sign * std::ldexp(digits, kLowest - kStoredDigits);
    if (exponent == 2 * kBias + 1) return digits ? std::nan("") : sign * INFINITY;
    return sign * std::ldexp(digits + (1 << kStoredDigits), exponent - kBias - kStoredDigits);
  }
  static S nearest(double x) {
    const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
    constexpr int kInfinite = (2 * kBias + 1) << kStoredDigits;
    if (std::isinf(x)) return {uint16_t(sign | kInfinite)};
    int exponent = x == 0 ? kLowest : std::ilogb(x);
    if (exponent < kLowest) exponent = kLowest;
    const double digits = std::nearbyint(std::ldexp(std::fabs(x), kStoredDigits - exponent));
    // Counted from the lowest number on, numbers are their bits; what is too large is counted as infinite.
    const int count = int(digits) + ((exponent - kLowest) << kStoredDigits);
    return {uint16_t(sign | (count < kInfinite ? count : kInfinite))};
  }
};
// Without the scale of its row.
template <>
struct Format<Int8> {
  static double value(Int8 x) { return x.number; }
};
template <>
struct Format<BFloat16> : NarrowFormat<BFloat16, 8, -126> {};
template <>
struct Format<Half> : NarrowFormat<Half, 11, -14> {};

}  // namespace rnnfused::test
