#pragma once

#include "core/simd.h"

namespace rnnfused::RNNFUSED_ISA {

template <class S>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr int terms = 7, mantissa = 23;
  static constexpr float magic = 12582912.0f, log2e = 1.44269504f, ln2_high = 0.693145752f,
                         ln2_low = 1.42860677e-06f;
  static constexpr float most = 100;
};
template <>
struct ExpConstants<double> {
  static constexpr int terms = 13, mantissa = 52;
  static constexpr double magic = 6755399441055744.0, log2e = 1.4426950408889634,
                          ln2_high = 0.6931471803691238, ln2_low = 1.9082149292705877e-10;
  static constexpr double most = 740;
};

template <class V>
RNNFUSED_HD V expm1_reduced(V r) {
  using S = ScalarOf<V>;
  double f = 1;
  for (int k = 2; k <= ExpConstants<S>::terms; ++k) f *= k;
  V p = broadcast<V>(S(1 / f));
  for (int k = ExpConstants<S>::terms; k > 2; --k) {
    f /= k;
    p = fma(p, r, broadcast<V>(S(1 / f)));
  }
  return fma(p * r, r, r);
}

template <class V>
struct Reduced {
  V scale, p;
};

template <class V>
RNNFUSED_HD Reduced<V> reduce(V x) {
  using S = ScalarOf<V>;
  using C = ExpConstants<S>;
  const V k = fma(x, broadcast<V>(C::log2e), broadcast<V>(C::magic));
  const V n = k - C::magic;
  const V r = fma(n, broadcast<V>(-C::ln2_low), fma(n, broadcast<V>(-C::ln2_high), x));
  const V scale =
      bit_cast<V>((bit_cast<IntOf<V>>(k) << C::mantissa) + bit_cast<IntOf<V>>(broadcast<V>(S(1))));
  return {scale, expm1_reduced(r)};
}

template <class V>
RNNFUSED_HD V sigmoid(V x) {
  const V zero{}, one = broadcast<V>(1);
  V a = x < zero ? x : -x;
  const V low = broadcast<V>(-(sizeof(ScalarOf<V>) == 4 ? 87 : 708));
  a = a < low ? low : a;
  const Reduced<V> e = reduce(a);
  const V ex = fma(e.scale, e.p, e.scale);
  return (x < zero ? ex : one) / (one + ex);
}

template <class V>
RNNFUSED_HD V tanh(V x) {
  const V zero{}, one = broadcast<V>(1), top = broadcast<V>(20);
  V a = x < zero ? -x : x;
  a = a > top ? top : a;
  const Reduced<V> e = reduce(a + a);
  const V em1 = fma(e.scale, e.p, e.scale - one);
  const V t = em1 / (em1 + ScalarOf<V>(2));
  return x < zero ? -t : t;
}

template <class V>
RNNFUSED_HD V tanh_gradient(V dy, V y) {
  return dy * fma(-y, y, broadcast<V>(1));
}
template <class V>
RNNFUSED_HD V sigmoid_gradient(V dy, V y) {
  return dy * (y * (broadcast<V>(1) - y));
}
template <class V>
RNNFUSED_HD V relu(V x) {
  return x < V{} ? V{} : x;
}
template <class V>
RNNFUSED_HD V relu_gradient(V dy, V y) {
  return y <= V{} ? V{} : dy;  // NaN lets the gradient through, as in torch
}

}  // namespace rnnfused::RNNFUSED_ISA
