// Conversions, approximate functions, and TF32.
#pragma once

#include <algorithm>
#include <cmath>

#include "checks.h"

namespace rnnfused {
namespace cuda {
namespace {

// ---- 16-bit floating point

template <class T>
struct Format;
template <>
struct Format<Half> {
  static constexpr int exponent_bits = 5, fraction_bits = 10;
};
template <>
struct Format<BFloat16> {
  static constexpr int exponent_bits = 8, fraction_bits = 7;
};

// The number whose bits are counted out by hand: no conversion of the hardware's or of a library's.
template <class T>
double decode(T value) {
  constexpr int kExponents = 1 << Format<T>::exponent_bits, kFractions = 1 << Format<T>::fraction_bits;
  constexpr int kBias = kExponents / 2 - 1;
  const int exponent = value.bits / kFractions % kExponents, fraction = value.bits % kFractions;
  const double sign = value.bits & 0x8000 ? -1 : 1;
  if (exponent == kExponents - 1) return fraction ? double(kNan) : sign * double(kInfinity);
  const int scale = 1 - kBias - Format<T>::fraction_bits;
  if (exponent == 0) return sign * std::ldexp(fraction, scale);
  return sign * std::ldexp(kFractions + fraction, scale + exponent - 1);
}

template <class T>
std::vector<T> all_values() {
  std::vector<T> values(1 << 16);
  for (size_t i = 0; i < values.size(); ++i) values[i] = T{uint16_t(i)};
  return values;
}

template <class T>
__global__ void __launch_bounds__(256) widen(const T* in, float* out, unsigned count) {
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x)
    out[i] = to_float(in[i]);
}

template <class T>
std::string check_to_float() {
  const std::vector<T> values = all_values<T>();
  const Buffer<T> in(values);
  const Buffer<float> out(std::vector<float>(values.size(), -1));
  launch(blocks_of(8, 256), nullptr, widen<T>, in.data(), out.data(), unsigned(values.size()));
  const std::vector<float> got = out.read();
  for (size_t i = 0; i < got.size(); ++i) {
    const auto expected = float(decode(values[i]));
    if (std::isnan(expected) ? !std::isnan(got[i]) : bits_as<uint32_t>(got[i]) != bits_as<uint32_t>(expected))
      return difference(i, expected, got[i]);
  }
  return "";
}

std::string check_floats_stay() {
  const std::vector<float> values = {0, -0.0f, 1.5f, kInfinity, 1e-45f, -3e38f};
  const Buffer<float> in(values), out(std::vector<float>(values.size(), -1));
  launch(blocks_of(1, 32), nullptr, widen<float>, in.data(), out.data(), unsigned(values.size()));
  return compare(out.read(), values);
}

template <class T>
struct Rounded {
  float from;
  T to;
};

// Every value, and what lies between it and the next one up: the nearer, and of two as near the even one.
template <class T>
std::vector<Rounded<T>> rounded_values() {
  constexpr int kInfinityBits = ((1 << Format<T>::exponent_bits) - 1) << Format<T>::fraction_bits;
  std::vector<Rounded<T>> found;
  for (const T value : all_values<T>()) {
    const int magnitude = value.bits & 0x7fff;
    const double exact = decode(value);
    if (std::isnan(exact)) continue;
    found.push_back({float(exact), value});
    if (magnitude >= kInfinityBits) continue;
    const T next = {uint16_t(value.bits + 1)};
    // What would come after the largest one stands for infinity.
    const double step =
        magnitude + 1 < kInfinityBits ? decode(next) - exact : exact - decode(T{uint16_t(value.bits - 1)});
    const auto middle = float(exact + step / 2);
    found.push_back({middle, value.bits % 2 == 0 ? value : next});
    found.push_back({std::nextafter(middle, float(exact)), value});
    found.push_back({std::nextafter(middle, float(exact + step)), next});
  }
  found.push_back({std::numeric_limits<float>::denorm_min(), T{0}});
  found.push_back({std::numeric_limits<float>::max(), T{uint16_t(kInfinityBits)}});
  return found;
}

template <class T>
__global__ void __launch_bounds__(256) narrow(const float* in, T* out, unsigned count) {
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x)
    out[i] = from_float<T>(in[i]);
}

template <class T>
std::string check_from_float() {
  const auto rounded = rounded_values<T>();
  std::vector<float> values;
  std::vector<T> expected;
  for (const auto& pair : rounded) values.push_back(pair.from), expected.push_back(pair.to);
  values.push_back(kNan);
  const auto count = unsigned(values.size());
  const Buffer<float> in(values);
  const Buffer<T> out(std::vector<T>(count, T{0x1234}));
  launch(blocks_of(8, 256), nullptr, narrow<T>, in.data(), out.data(), count);
  const std::vector<T> got = out.read();
  const std::string nan = std::isnan(decode(got.back())) ? "" : "NaN became " + show(got.back());
  return first_of(compare(got, expected), nan);
}

std::string check_from_float_to_itself() {
  const std::vector<float> values = {0, -0.0f, 1.5f, kInfinity, 1e-45f, -3e38f};
  const Buffer<float> in(values), out(std::vector<float>(values.size(), -1));
  launch(blocks_of(1, 32), nullptr, narrow<float>, in.data(), out.data(), unsigned(values.size()));
  return compare(out.read(), values);
}

template <class T>
__global__ void __launch_bounds__(kLanes) pack_lanes(uint32_t* packed) {
  const unsigned i = threadIdx.x;
  const uint32_t bits = mix(i);
  packed[i] = pack(T{uint16_t(bits)}, T{uint16_t(bits >> 16)});
}

template <class T>
std::string check_pack() {
  const Buffer<uint32_t> packed(std::vector<uint32_t>(kLanes, 7));
  launch(blocks_of(1, kLanes), nullptr, pack_lanes<T>, packed.data());
  std::vector<uint32_t> expected;
  for (unsigned i = 0; i < kLanes; ++i) expected.push_back(mix(i));
  return compare(packed.read(), expected);
}

// ---- Approximate functions

enum class Function { exp2, reciprocal };

template <Function F>
__global__ void __launch_bounds__(256) approximate(const float* in, float* out, unsigned count) {
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    const float x = in[i];
    out[i] = F == Function::exp2 ? exp2_approx(x) : reciprocal_approx(x);
  }
}

// Every exponent, both signs, and closely where functions bend.
std::vector<float> kinds_of_floats() {
  std::vector<float> values = {0, -0.0f, kInfinity, -kInfinity, kNan};
  for (uint32_t exponent = 0; exponent < 255; ++exponent) {
    for (uint32_t k = 0; k < 24; ++k) {
      const uint32_t fraction = k == 0   ? 0
                                : k == 1 ? 1
                                : k == 2 ? 0x7fffff
                                         : mix(exponent * 64 + k) & 0x7fffff;
      for (uint32_t sign : {0u, 0x80000000u})
        values.push_back(bits_as<float>(sign | exponent << 23 | fraction));
    }
  }
  for (int i = -9600; i <= 9600; ++i) values.push_back(float(i) / 64);           // to 150
  for (int i = -4096; i <= 4096; ++i) values.push_back(float(i) / 512 + 1e-4f);  // to 8
  return values;
}

constexpr double kSmallestNormal = std::numeric_limits<float>::min();

bool is_subnormal(double value) { return value != 0 && std::fabs(value) < kSmallestNormal; }

// Subnormal numbers are zeros of the same sign (.ftz).
double flushed(double value) { return is_subnormal(value) ? std::copysign(0.0, value) : value; }

// What PTX's manual gives as the largest error, in units in the last place of the rounded result; a result
// that is subnormal is flushed. 0 may also stand for a normal one that is no further from the subnormal ones.
bool is_near(double exact, float got, double most_ulps) {
  const auto rounded = float(exact);
  if (std::isnan(rounded)) return std::isnan(got);
  if (is_subnormal(double(got))) return false;
  const auto largest = double(std::numeric_limits<float>::max());
  if (std::isinf(rounded) || std::isinf(got)) {
    const double ulp = std::ldexp(1, 104);
    return std::isinf(got) && std::signbit(got) == std::signbit(rounded) &&
           std::fabs(exact) >= largest - most_ulps * ulp;
  }
  if (rounded == 0 || got == 0) {
    const double ulp = std::ldexp(1, -149);
    return std::signbit(got) == std::signbit(rounded) &&
           (got == 0 ? std::fabs(exact) < kSmallestNormal + most_ulps * ulp
                     : double(std::fabs(got)) <= kSmallestNormal + most_ulps * ulp);
  }
  const double ulp = std::ldexp(1, std::max(std::ilogb(rounded), -126) - 23);
  return std::fabs(double(got) - double(rounded)) <= most_ulps * ulp;
}

// ex2.approx.ftz.f32: at most 2 ulp from the correctly rounded result.
bool exp2_holds(float x, float got) { return is_near(std::exp2(flushed(double(x))), got, 2); }

// rcp.approx.ftz.f32: at most 1 ulp.
bool reciprocal_holds(float x, float got) { return is_near(1 / flushed(double(x)), got, 1); }

template <Function F>
std::string check_approximation() {
  const std::vector<float> values = kinds_of_floats();
  const auto count = unsigned(values.size());
  const Buffer<float> in(values), out(std::vector<float>(count, kNan));
  launch(blocks_of(8, 256), nullptr, approximate<F>, in.data(), out.data(), count);
  const std::vector<float> got = out.read();
  for (unsigned i = 0; i < count; ++i) {
    const float x = values[i];
    if (F == Function::exp2 ? exp2_holds(x, got[i]) : reciprocal_holds(x, got[i])) continue;
    const double exact = F == Function::exp2 ? std::exp2(double(x)) : 1 / double(x);
    return "of " + show(x) + ": expected " + show(float(exact)) + ", got " + show(got[i]);
  }
  return "";
}

// ---- TF32

__global__ void __launch_bounds__(256) round_to_tf32(const float* in, uint32_t* out, unsigned count) {
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x)
    out[i] = to_tf32(in[i]);
}

// The bits that a product looks at; the 13 below are nobody's.
constexpr uint32_t kTf32Bits = ~0x1fffu;

std::string check_to_tf32() {
  std::vector<float> values = kinds_of_floats();
  for (uint32_t exponent = 1; exponent < 254; ++exponent) {
    // Ties, and their neighbours.
    for (uint32_t k = 0; k < 16; ++k) {
      const uint32_t tie = exponent << 23 | (mix(exponent * 16 + k) & 0x7fe000) | 0x1000;
      for (uint32_t bits : {tie - 1, tie, tie + 1, tie | 0x80000000u}) values.push_back(bits_as<float>(bits));
    }
  }
  const auto count = unsigned(values.size());
  const Buffer<float> in(values);
  const Buffer<uint32_t> out(std::vector<uint32_t>(count, 7));
  launch(blocks_of(8, 256), nullptr, round_to_tf32, in.data(), out.data(), count);
  const std::vector<uint32_t> got = out.read();
  for (unsigned i = 0; i < count; ++i) {
    const uint32_t bits = bits_as<uint32_t>(values[i]), seen = got[i] & kTf32Bits;
    if (std::isnan(values[i])) {
      if (!std::isnan(bits_as<float>(seen))) return difference(i, bits, seen);
      continue;
    }
    // To nearest, of two as near the one further from zero, which may be infinity.
    const uint32_t below = bits & kTf32Bits, above = below + ~kTf32Bits + 1, over = bits - below;
    const uint32_t expected = over * 2 < above - below ? below : above;
    if (seen != expected) return difference(i, expected, seen);
  }
  return "";
}

}  // namespace

inline WrapperChecks number_checks() {
  return {
      {"to_float", "float16", 80, check_to_float<Half>},
      {"to_float", "bfloat16", 80, check_to_float<BFloat16>},
      {"to_float", "float32", 80, check_floats_stay},
      {"from_float", "float16", 80, check_from_float<Half>},
      {"from_float", "bfloat16", 80, check_from_float<BFloat16>},
      {"from_float", "float32", 80, check_from_float_to_itself},
      {"pack", "float16", 80, check_pack<Half>},
      {"pack", "bfloat16", 80, check_pack<BFloat16>},
      {"exp2_approx", "", 80, check_approximation<Function::exp2>},
      {"reciprocal_approx", "", 80, check_approximation<Function::reciprocal>},
      {"to_tf32", "", 80, check_to_tf32},
  };
}

}  // namespace cuda
}  // namespace rnnfused
