// Errors of exp, sigmoid and tanh over the whole range of float (every 61st of all bit patterns, under an
// emulator every 2003rd, all of them in the case that is skipped by default) and over dense points of double;
// special values; lanes against the one-lane code.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <thread>

#include "core/math.h"

namespace isa = rnnfused::RNNFUSED_ISA;

namespace {

template <class T>
using V = isa::Native<T>;
template <class T>
constexpr int L = isa::kLanes<T>;

struct Exp {
  static constexpr bool has_denormals = true;
  template <class X>
  static X ours(X x) {
    return isa::exp(x);
  }
  template <class X>
  static X exact(X x) {
    return std::exp(x);
  }
};
struct Sigmoid {
  static constexpr bool has_denormals = false;  // such results are only known to be below the normal numbers
  template <class X>
  static X ours(X x) {
    return isa::sigmoid(x);
  }
  template <class X>
  static X exact(X x) {
    // Through exp(-|x|): 1 / (1 + exp(-x)) overflows where the result is still a number.
    const X e = std::exp(-std::fabs(x));
    return (x < 0 ? e : X(1)) / (1 + e);
  }
};
struct Tanh {
  static constexpr bool has_denormals = true;
  template <class X>
  static X ours(X x) {
    return isa::tanh(x);
  }
  template <class X>
  static X exact(X x) {
    return std::tanh(x);
  }
};

// Distance from the exact result in units of the last place of T there.
template <class T, class Wide>
double ulps(T got, Wide exact) {
  const T near = T(exact);
  if (std::isinf(near) || std::isinf(got))
    return std::isinf(near) && got == near ? 0 : std::isinf(near) ? 1 : INFINITY;
  const int exponent = std::max(std::ilogb(exact == 0 ? Wide(std::numeric_limits<T>::denorm_min()) : exact),
                                std::numeric_limits<T>::min_exponent - 1);
  return double(std::fabs(Wide(got) - exact) /
                std::ldexp(Wide(1), exponent - std::numeric_limits<T>::digits + 1));
}

template <class F, class T, class Wide>
double worst_of(const T* x, double worst) {
  T y[L<T>];
  isa::store(y, F::ours(isa::load<V<T>>(x)));
  for (int i = 0; i < L<T>; ++i) {
    const Wide exact = F::exact(Wide(x[i]));
    if (F::has_denormals || exact >= Wide(std::numeric_limits<T>::min())) {
      worst = std::max(worst, ulps(y[i], exact));
    } else if (!(y[i] >= 0 && y[i] <= std::numeric_limits<T>::min())) {
      worst = INFINITY;
    }
  }
  return worst;
}

// Of so many patterns one is tested; of more where an emulator runs the test, to which a pattern is a
// microsecond.
uint64_t sparse() { return std::getenv("RNNFUSED_EMULATED") ? 2003 : 61; }

template <class F>
double worst_float(uint64_t first, uint64_t last, uint64_t stride) {
  double worst = 0;
  float x[L<float>];
  int n = 0;
  for (uint64_t bits = first; bits < last; bits += stride) {
    const uint32_t low = uint32_t(bits);
    float value;
    memcpy(&value, &low, sizeof(value));
    if (std::isnan(value)) continue;
    x[n++] = value;
    if (n == L<float>) {
      worst = worst_of<F, float, double>(x, worst);
      n = 0;
    }
  }
  return worst;
}

// Two threads: what is exact takes the C library most of a minute.
template <class F>
double worst_float(uint64_t stride) {
  constexpr uint64_t kNegative = uint64_t(1) << 31;
  double below = 0;
  std::thread other([&] { below = worst_float<F>(kNegative, 2 * kNegative, stride); });
  const double above = worst_float<F>(0, kNegative, stride);
  other.join();
  return std::max(below, above);
}

template <class F>
double worst_double(double range, int points) {
  double worst = 0;
  double x[L<double>];
  for (int i = 0; i + L<double> <= points; i += L<double>) {
    for (int j = 0; j < L<double>; ++j) {
      const int k = i + j;
      // Half of the points spread evenly, half over all magnitudes down to 1e-300.
      x[j] = k % 2 ? range * (2.0 * k / points - 1)
                   : (k % 4 ? -1 : 1) * std::exp(std::log(range) - (std::log(range) + 690) * k / points);
    }
    worst = worst_of<F, double, long double>(x, worst);
  }
  return worst;
}

struct Bounds {
  double exp, sigmoid, tanh;
};
// The comments in math.h state these numbers.
#if RNNFUSED_VECTOR_BYTES > 0
constexpr double tanh_bound = 2.6;
#else
constexpr double tanh_bound = 2.7;
#endif
constexpr Bounds float_bounds{1.1, 2.5, tanh_bound}, double_bounds{1.1, 2.2, tanh_bound};

template <class T>
void check_special() {
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const auto all = [](T x) { return isa::broadcast<V<T>>(x); };
  const auto first = [](V<T> v) {
    T lanes[L<T>];
    isa::store(lanes, v);
    for (int i = 1; i < L<T>; ++i) CHECK(memcmp(&lanes[i], &lanes[0], sizeof(T)) == 0);
    return lanes[0];
  };
  CHECK(first(isa::exp(all(inf))) == inf);
  CHECK(first(isa::exp(all(-inf))) == 0);
  CHECK(first(isa::exp(all(0))) == 1);
  CHECK(first(isa::exp(all(T(-0.0)))) == 1);
  CHECK(first(isa::sigmoid(all(inf))) == 1);
  CHECK(first(isa::sigmoid(all(-inf))) == 0);
  CHECK(first(isa::sigmoid(all(0))) == T(0.5));
  CHECK(first(isa::tanh(all(inf))) == 1);
  CHECK(first(isa::tanh(all(-inf))) == -1);
  for (T x : {T(0), T(-0.0), std::numeric_limits<T>::denorm_min(), -std::numeric_limits<T>::denorm_min(),
              std::numeric_limits<T>::min()}) {
    CHECK(first(isa::tanh(all(x))) == x);
    CHECK(std::signbit(first(isa::tanh(all(x)))) == std::signbit(x));
  }
  for (T x : {nan, -nan}) {
    CHECK(std::isnan(first(isa::exp(all(x)))));
    CHECK(std::isnan(first(isa::sigmoid(all(x)))));
    CHECK(std::isnan(first(isa::tanh(all(x)))));
    CHECK(std::isnan(first(isa::relu(all(x)))));
    CHECK(first(isa::relu_gradient(all(3), all(x))) == 3);
  }
  CHECK(first(isa::relu(all(-2))) == 0);
  CHECK(first(isa::relu(all(2))) == 2);
  CHECK(first(isa::relu(all(inf))) == inf);
  CHECK(first(isa::relu_gradient(all(3), all(0))) == 0);
  CHECK(first(isa::relu_gradient(all(3), all(1))) == 3);
  CHECK(first(isa::tanh_gradient(all(2), all(T(0.5)))) == T(1.5));
  CHECK(first(isa::sigmoid_gradient(all(2), all(T(0.25)))) == T(0.375));
}

template <class T, class F>
void check_lanes() {
  for (int i = 0; i < 20000; ++i) {
    T x[L<T>], y[L<T>];
    for (int j = 0; j < L<T>; ++j) x[j] = T((i * 31 + j * 7) % 2003 - 1001) * T(0.11);
    isa::store(y, F::ours(isa::load<V<T>>(x)));
    for (int j = 0; j < L<T>; ++j) {
      const T one = F::ours(x[j]);
      REQUIRE(memcmp(&one, &y[j], sizeof(T)) == 0);
    }
  }
}

}  // namespace

TEST_CASE("float errors, every 61st bit pattern") {
  CHECK(worst_float<Exp>(sparse()) <= float_bounds.exp);
  CHECK(worst_float<Sigmoid>(sparse()) <= float_bounds.sigmoid);
  CHECK(worst_float<Tanh>(sparse()) <= float_bounds.tanh);
}

TEST_CASE("float errors, every bit pattern" * doctest::skip()) {
  MESSAGE("exp " << worst_float<Exp>(1) << " sigmoid " << worst_float<Sigmoid>(1) << " tanh "
                 << worst_float<Tanh>(1));
  CHECK(worst_float<Exp>(1) <= float_bounds.exp);
  CHECK(worst_float<Sigmoid>(1) <= float_bounds.sigmoid);
  CHECK(worst_float<Tanh>(1) <= float_bounds.tanh);
}

TEST_CASE("double errors") {
  CHECK(worst_double<Exp>(750, 2000000) <= double_bounds.exp);
  CHECK(worst_double<Sigmoid>(750, 2000000) <= double_bounds.sigmoid);
  CHECK(worst_double<Tanh>(22, 2000000) <= double_bounds.tanh);
}

TEST_CASE("special values") {
  check_special<float>();
  check_special<double>();
}

TEST_CASE("a vector's lanes are the one-lane code, bit for bit") {
  check_lanes<float, Exp>(), check_lanes<float, Sigmoid>(), check_lanes<float, Tanh>();
  check_lanes<double, Exp>(), check_lanes<double, Sigmoid>(), check_lanes<double, Tanh>();
}
