// 16-bit numbers, compiled for one ISA: every one of them, and what is rounded to them.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "cpu/pack.h"
#include "formats.h"

namespace isa = rnnfused::RNNFUSED_ISA;

namespace rnnfused::test {
namespace {

using V = isa::Native<float>;
constexpr int L = isa::kLanes<float>;

// The instruction takes denormal numbers of a bfloat16 for zero.
template <class S>
constexpr bool kFlushes = isa::kDots<S>;
constexpr float kSmallest = 1.1754944e-38f;

template <class S>
S stored(float x) {
  S lanes[L];
  isa::store(lanes, isa::broadcast<V>(x));
  return lanes[L - 1];
}

template <class S>
void check_rounding(float x) {
  const S got = stored<S>(x), want = Format<S>::nearest(x);
  CAPTURE(x);
  if constexpr (isa::kWidens<S>) {  // elsewhere nothing is rounded that is not stored
    S all[L];
    float again[2][L];
    for (S& one : all) one = got;
    isa::store(again[0], isa::load<V>(all));
    isa::store(again[1], isa::rounded(isa::broadcast<V>(x), S{}));
    REQUIRE(memcmp(again[0], again[1], sizeof again[0]) == 0);
  }
  if (std::isnan(x)) {
    REQUIRE(std::isnan(Format<S>::value(got)));
  } else if (kFlushes<S> && std::fabs(x) < kSmallest && got.bits != want.bits) {
    REQUIRE((got.bits & 0x7fff) == 0);
    REQUIRE(std::signbit(x) == (got.bits >> 15 != 0));
  } else {
    REQUIRE(got.bits == want.bits);
  }
}

TEST_CASE_TEMPLATE("every number, and what lies between it and the next", S, BFloat16, Half) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const S x{uint16_t(bits)};
    S lanes[L];
    for (S& lane : lanes) lane = x;
    float read[L];
    isa::store(read, isa::load<V>(lanes));
    const double value = Format<S>::value(x);
    CAPTURE(bits);
    if (std::isnan(value)) {
      REQUIRE(std::isnan(read[0]));
    } else {
      REQUIRE(double(read[0]) == value);
      REQUIRE(std::signbit(read[0]) == (bits >> 15 != 0));
    }
    check_rounding<S>(read[0]);
    if (std::isnan(value) || std::isinf(value)) continue;
    const float above = float(Format<S>::value(S{uint16_t(bits + 1)}));
    const float half = std::isinf(above) ? read[0] : read[0] + (above - read[0]) / 2;
    for (const float near : {half, std::nextafter(half, INFINITY), std::nextafter(half, -INFINITY)})
      check_rounding<S>(near);
  }
}

TEST_CASE_TEMPLATE("numbers without a finite neighbour", S, BFloat16, Half) {
  for (const float x :
       {0.0f, -0.0f, INFINITY, -INFINITY, NAN, 65519.0f, 65520.0f, -65536.0f, 3.4e38f, -3.4e38f})
    check_rounding<S>(x);
}

TEST_CASE_TEMPLATE("a part of a vector touches no more than that", S, BFloat16, Half) {
  for (int n = 0; n <= L; ++n) {
    std::vector<S> from(static_cast<size_t>(n)), to(size_t(n) + 1, S{0x1234});
    for (int i = 0; i < n; ++i) from[size_t(i)] = Format<S>::nearest(i + 1);
    const V v = isa::load<V>(from.data(), n);
    float lanes[L];
    isa::store(lanes, v);
    for (int i = 0; i < L; ++i) REQUIRE(lanes[i] == (i < n ? float(i + 1) : 0));
    isa::store(to.data(), v, n);
    for (int i = 0; i < n; ++i) REQUIRE(to[size_t(i)].bits == from[size_t(i)].bits);
    REQUIRE(to[size_t(n)].bits == 0x1234);
  }
}

// A scalar of a panel, as a number.
template <class S>
double entry(const isa::Operand<S>* panel, Index k, Index lane, Index stride) {
  constexpr Index P = isa::kTerms<S>;
  return Format<isa::Operand<S>>::value(panel[(k / P * stride + lane) * P + k % P]);
}

template <class S>
std::vector<S> numbers(Index n) {
  std::mt19937 random(1);
  std::vector<S> all;
  for (Index i = 0; i < n; ++i) all.push_back(Format<S>::nearest(double(random() % 1000) - 500));
  return all;
}

TEST_CASE_TEMPLATE("panels of rows and of columns, with zeros after them", S, BFloat16, Half) {
  for (Index lanes = 1; lanes <= L; ++lanes) {
    for (const Index size : {Index(1), Index(2), Index(2 * L - 1), Index(2 * L), Index(5 * L + 3)}) {
      const Index stride = 2 * L, terms = isa::panel_terms<S>(size);
      const std::vector<S> rows = numbers<S>(lanes * size);
      std::vector<isa::Operand<S>> panel(size_t(terms * stride));
      isa::pack_rows(rows.data(), size, lanes, size, panel.data(), stride);
      for (Index k = 0; k < terms; ++k) {
        for (Index lane = 0; lane < L; ++lane) {
          const bool there = k < size && lane < lanes;
          REQUIRE(entry<S>(panel.data(), k, lane, stride) ==
                  (there ? Format<S>::value(rows[size_t(lane * size + k)]) : 0));
        }
      }
      // The same numbers as `size` rows of as many columns.
      std::vector<isa::Operand<S>> across(size_t(terms * L));
      isa::pack_columns(rows.data(), lanes, size, lanes, 0, 1, across.data());
      for (Index k = 0; k < terms; ++k) {
        for (Index lane = 0; lane < L; ++lane) {
          const bool there = k < size && lane < lanes;
          REQUIRE(entry<S>(across.data(), k, lane, L) ==
                  (there ? Format<S>::value(rows[size_t(k * lanes + lane)]) : 0));
        }
      }
    }
  }
}

}  // namespace
}  // namespace rnnfused::test
