// A number and its derivative in one direction. A cell's maths on such numbers gives, beside what it gives on
// plain ones (the same bits), the tangents of its forward and of its backward: no cell has maths of its own
// for either.
#pragma once

#include "core/math.h"

namespace rnnfused::RNNFUSED_ISA {

template <class V>
struct Dual {
  V value, tangent;
};

template <class V>
struct Lanes<Dual<V>> {
  using Scalar = ScalarOf<V>;
  static constexpr int count = Lanes<V>::count;
};

template <class V>
RNNFUSED_HD Dual<V> operator-(Dual<V> a) {
  return {-a.value, -a.tangent};
}

template <class V>
RNNFUSED_HD Dual<V> operator+(Dual<V> a, Dual<V> b) {
  return {a.value + b.value, a.tangent + b.tangent};
}

template <class V>
RNNFUSED_HD Dual<V> operator-(Dual<V> a, Dual<V> b) {
  return {a.value - b.value, a.tangent - b.tangent};
}

template <class V>
RNNFUSED_HD Dual<V> operator-(ScalarOf<V> a, Dual<V> b) {
  return {a - b.value, -b.tangent};
}

template <class V>
RNNFUSED_HD Dual<V> operator*(Dual<V> a, Dual<V> b) {
  return {a.value * b.value, fma(a.value, b.tangent, a.tangent * b.value)};
}

template <class V>
RNNFUSED_HD Dual<V> fma(Dual<V> a, Dual<V> b, Dual<V> c) {
  return {fma(a.value, b.value, c.value), fma(a.value, b.tangent, fma(a.tangent, b.value, c.tangent))};
}

template <class V>
RNNFUSED_HD Dual<V> sigmoid(Dual<V> x) {
  const V y = sigmoid(x.value);
  return {y, sigmoid_gradient(x.tangent, y)};
}

template <class V>
RNNFUSED_HD Dual<V> tanh(Dual<V> x) {
  const V y = tanh(x.value);
  return {y, tanh_gradient(x.tangent, y)};
}

// Where relu has no derivative, its tangent is what its gradient is: none.
template <class V>
RNNFUSED_HD Dual<V> relu(Dual<V> x) {
  return {relu(x.value), relu_gradient(x.tangent, x.value)};
}

template <class V>
RNNFUSED_HD Dual<V> relu_gradient(Dual<V> dy, Dual<V> y) {
  return {relu_gradient(dy.value, y.value), relu_gradient(dy.tangent, y.value)};
}

}  // namespace rnnfused::RNNFUSED_ISA
