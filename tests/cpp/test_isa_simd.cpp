#include <doctest/doctest.h>

#include <cmath>

#include "core/simd.h"
#include "cpu/pack.h"

namespace isa = rnnfused::RNNFUSED_ISA;

namespace {

template <class T>
void check() {
  using V = isa::Native<T>;
  constexpr int L = isa::kLanes<T>;
  T in[L + 1], out[L + 2];
  for (int i = 0; i <= L; ++i) in[i] = T(i + 1);

  for (int n = 0; n <= L + 1; ++n) {
    for (T& x : out) x = T(-7);
    isa::store(out + 1, isa::load<V>(in, n), n);
    for (int i = 0; i < L; ++i) CHECK(out[1 + i] == (i < n ? in[i] : T(-7)));
    CHECK(out[0] == T(-7));
    CHECK(out[L + 1] == T(-7));
    isa::store(out + 1, isa::load<V>(in, n));
    for (int i = 0; i < L; ++i) CHECK(out[1 + i] == (i < n ? in[i] : T(0)));
  }

  const V x = isa::load<V>(in), one = isa::broadcast<V>(T(1));
  isa::store(out, isa::fma(x, x, one));
  for (int i = 0; i < L; ++i) CHECK(out[i] == in[i] * in[i] + 1);
  isa::store(out, V(x > T(2) ? x : one));
  for (int i = 0; i < L; ++i) CHECK(out[i] == (in[i] > 2 ? in[i] : 1));
  CHECK(isa::bit_cast<T>(isa::bit_cast<isa::IntOf<T>>(T(1.5))) == T(1.5));
}

template <class T>
void check_lane_sums() {
  constexpr int L = isa::kLanes<T>;
  isa::Native<T> v[L];
  for (int i = 0; i < L; ++i) {
    T lanes[L];
    for (int j = 0; j < L; ++j) lanes[j] = T(i * L + j);
    v[i] = isa::load<isa::Native<T>>(lanes);
  }
  T sums[L];
  isa::store(sums, isa::lane_sums<T>(v));
  for (int i = 0; i < L; ++i) CHECK(sums[i] == T(i * L * L + L * (L - 1) / 2));
}

template <class T>
void check_pack_rows() {
  constexpr int L = isa::kLanes<T>;
  constexpr int size = 2 * L + 3, stride = L * 2;
  T rows[L * size], out[size * stride];
  for (int i = 0; i < L * size; ++i) rows[i] = T(i + 1);
  for (int lanes = 0; lanes <= L; ++lanes) {
    for (T& x : out) x = T(-7);
    isa::pack_rows<T>(rows, size, lanes, size, out, stride);
    for (int k = 0; k < size; ++k) {
      for (int lane = 0; lane < stride; ++lane) {
        const T expected = lane >= L ? T(-7) : lane < lanes ? rows[lane * size + k] : T(0);
        REQUIRE(out[k * stride + lane] == expected);
      }
    }
  }
}

}  // namespace

TEST_CASE("loads, stores and operators") {
  check<float>();
  check<double>();
}

TEST_CASE("vectors become the sums of their lanes") {
  check_lane_sums<float>();
  check_lane_sums<double>();
}

TEST_CASE("rows become lanes") {
  check_pack_rows<float>();
  check_pack_rows<double>();
}
