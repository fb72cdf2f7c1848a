// exp, sigmoid and tanh for the epilogues: inlined, without branches, calls or tables, one polynomial and at
// most one division each. Errors are in units in the last place (ulp) of the exact result, over the whole
// range of the type, as tests/cpp/test_isa_math.cpp measures them; "without fma" is the scalar build. NaN
// gives NaN.
//
// Method: x = n ln 2 + r with |r| <= ln 2 / 2, n rounded by adding and subtracting 1.5 * 2^mantissa bits.
// expm1(r) = r + r^2 q(r), where q minimises the largest relative error of expm1 on the interval (Lawson's
// iteration on Chebyshev points): 1.4e-8 in float, 1.9e-17 in double. ln 2 is split so that n times its high
// part is exact.
#pragma once

#include "core/simd.h"

namespace rnnfused::RNNFUSED_ISA {

template <class S>
struct ExpConstants;

template <>
struct ExpConstants<float> {
  static constexpr int mantissa_bits = 23;
  static constexpr float round = 12582912.0f;
  static constexpr float log2e = 1.44269504f, ln2_high = 0.693145752f, ln2_low = 1.42860677e-06f;
  static constexpr float q[] = {0.49999998147805594f, 0.16666543398577721f, 0.041667201372210438f,
                                0.00836654958330313f, 0.0013882471107293f};
  static constexpr float lowest = -104.0f, highest = 89.0f;  // exp is 0 below, infinite above
};

template <>
struct ExpConstants<double> {
  static constexpr int mantissa_bits = 52;
  static constexpr double round = 6755399441055744.0;
  static constexpr double log2e = 1.4426950408889634, ln2_high = 0.6931471803691238,
                          ln2_low = 1.9082149292705877e-10;
  static constexpr double q[] = {
      0.50000000000000052612,   0.16666666666666592843,    0.041666666666576001561,  0.0083333333333871384152,
      0.0013888888931780329406, 0.00019841269724499790118, 2.4801505033045733287e-5, 2.755740240704653162e-6,
      2.7626129682931957064e-7, 2.5055471682878844077e-8};
  static constexpr double lowest = -746.0, highest = 710.0;
};

// exp(x) = 2^n (1 + p), p = expm1(r); shifted holds n in its low bits.
template <class V>
struct Reduced {
  V shifted, n, p;
};

// Horner's rule from q[K] down, onto a sum so far. Recursion, because device code can take an element of a
// constant array only where its index is a constant too.
template <int K, class V>
RNNFUSED_HD V polynomial(V sum, V r) {
  using C = ExpConstants<ScalarOf<V>>;
  if constexpr (K < 0) {
    return sum;
  } else {
    return polynomial<K - 1>(fma(sum, r, broadcast<V>(C::q[K])), r);
  }
}

template <class V>
RNNFUSED_HD Reduced<V> reduce(V x) {
  using C = ExpConstants<ScalarOf<V>>;
  const V shifted = fma(x, broadcast<V>(C::log2e), broadcast<V>(C::round)), n = shifted - C::round;
  const V r = fma(n, broadcast<V>(-C::ln2_low), fma(n, broadcast<V>(-C::ln2_high), x));
  constexpr int terms = sizeof(C::q) / sizeof(C::q[0]);
  const V q = polynomial<terms - 2>(broadcast<V>(C::q[terms - 1]), r);
  return {shifted, n, fma(r * r, q, r)};
}

// 2^n, a normal number, of n in the low bits of `shifted`.
template <class V>
RNNFUSED_HD V power_of_two(V shifted) {
  using U = UIntOf<V>;
  constexpr int bits = ExpConstants<ScalarOf<V>>::mantissa_bits;
  return bit_cast<V>((bit_cast<U>(shifted) << bits) + bit_cast<U>(broadcast<V>(1)));
}

// x 2^n, also where 2^n alone would leave the normal numbers before the result does.
template <class V>
RNNFUSED_HD V scale(V x, V n) {
#if RNNFUSED_VECTOR_BYTES == 64
  if constexpr (Lanes<V>::count > 1) return V(instruction::scale(x, n));
#endif
  using C = ExpConstants<ScalarOf<V>>;
  const V first = n * ScalarOf<V>(0.5) + C::round;
  return x * power_of_two(first) * power_of_two((n - (first - C::round)) + C::round);
}

// Max error 1.1 ulp (float), 1.1 ulp (double), denormal results included; 0 below the smallest, infinite
// above the largest.
template <class V>
RNNFUSED_HD V exp(V x) {
  using C = ExpConstants<ScalarOf<V>>;
  const Reduced<V> e = reduce(at_most(at_least(x, C::lowest), C::highest));
  return scale(e.p + ScalarOf<V>(1), e.n);
}

// 1 / (1 + exp(-x)). Max error 2.5 ulp (float), 2.2 ulp (double); results that are denormal numbers, for x <
// -87.3 (-708.3), lie below the smallest normal number as they should, and are 0 where exp(-x) is infinite.
template <class V>
RNNFUSED_HD V sigmoid(V x) {
  return ScalarOf<V>(1) / (ScalarOf<V>(1) + exp(-x));
}

template <class V>
RNNFUSED_HD IntOf<V> sign_of(V x) {
  const IntOf<V> mask = IntOf<V>{} + (IntOf<ScalarOf<V>>(1) << (8 * sizeof(ScalarOf<V>) - 1));
  return bit_cast<IntOf<V>>(x) & mask;
}

// Max error 2.6 ulp (float and double; 2.7 without fma); tanh(-0) is -0, denormals are their own tanh,
// exactly 1 at infinity.
template <class V>
RNNFUSED_HD V tanh(V x) {
  // expm1(2 |x|) / (expm1(2 |x|) + 2) is exact to the last bits near zero and is 1 from |x| = 20 on.
  const V a = at_most(bit_cast<V>(bit_cast<IntOf<V>>(x) & ~sign_of(broadcast<V>(-1))), ScalarOf<V>(20));
  const Reduced<V> e = reduce(a + a);
  const V power = power_of_two(e.shifted);
  const V em1 = fma(power, e.p, power - ScalarOf<V>(1));
  const V t = em1 / (em1 + ScalarOf<V>(2));
  return bit_cast<V>(bit_cast<IntOf<V>>(t) | sign_of(x));
}

// Gradients in terms of the function's value y.
template <class V>
RNNFUSED_HD V tanh_gradient(V dy, V y) {
  return dy * fma(-y, y, broadcast<V>(1));
}

template <class V>
RNNFUSED_HD V sigmoid_gradient(V dy, V y) {
  return dy * (y * (broadcast<V>(1) - y));
}

// log(1 + e^x) = max(x, 0) + log(1 + u), u = e^-|x|, where log(1 + u) = 2 atanh(s), s = u / (2 + u) <= 1/3: a
// series in s^2 <= 1/9.
template <class V>
RNNFUSED_HD V softplus(V x) {
  using T = ScalarOf<V>;
  constexpr int terms = sizeof(T) == 4 ? 8 : 17;
  const V positive = x < T(0) ? V{} : x, u = exp(x < T(0) ? x : -x), s = u / (T(2) + u), square = s * s;
  V sum = broadcast<V>(T(2) / T(2 * terms - 1));
  for (int k = terms - 2; k >= 0; --k) sum = fma(sum, square, broadcast<V>(T(2) / T(2 * k + 1)));
  return fma(s, sum, positive);
}

template <class V>
RNNFUSED_HD V relu(V x) {
  return x < ScalarOf<V>(0) ? V{} : x;
}

// NaN lets the gradient through, as in torch.
template <class V>
RNNFUSED_HD V relu_gradient(V dy, V y) {
  return y <= ScalarOf<V>(0) ? V{} : dy;
}

// A sum, and beside it what its roundings lost (Knuth's TwoSum).
template <class V>
struct ExactSum {
  V total, lost;

  RNNFUSED_HD void add(V x) {
    const V sum = total + x, part = sum - total;
    lost = lost + ((total - (sum - part)) + (x - part));
    total = sum;
  }
  // An infinite sum has lost NaN.
  RNNFUSED_HD V value() const { return total - total == ScalarOf<V>(0) ? total + lost : total; }
};

}  // namespace rnnfused::RNNFUSED_ISA
