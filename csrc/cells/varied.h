// The maths of layers with options (core/variation.h): from the sums of both products, normalised where they
// are, to states, and back. rnnfused/reference has the same, and the sources.
#pragma once

#include "core/math.h"
#include "core/variation.h"

namespace rnnfused::RNNFUSED_ISA {

constexpr int kMaxGates = 4;

template <class V>
RNNFUSED_HD V clamp(V x, ScalarOf<V> limit) {
  return at_most(at_least(x, -limit), limit);
}
// Nothing from beyond the limit, nor from NaN, as of torch.clamp; without a limit everything.
template <class V>
RNNFUSED_HD V clamp_gradient(V dy, V x, ScalarOf<V> limit) {
  if (limit - limit != ScalarOf<V>(0)) return dy;  // infinite
  const V above_low = x >= -limit ? dy : V{};
  return x <= limit ? above_low : V{};
}

// What x feeds and what h feeds, gate by gate; of a joint norm the first alone, and the second is zero.
template <class V>
struct GateSums {
  V x[kMaxGates], h[kMaxGates];
  RNNFUSED_HD V both(int gate) const { return x[gate] + h[gate]; }
};

// ---- The LSTM, in two parts, between which c may be normalised

template <class V>
struct Peepholes {
  V i, f, o;
};

// A gate's sum with what c gives to it. Without peepholes nothing, not even of an infinite c.
template <class V>
RNNFUSED_HD V with_peephole(const Variation<ScalarOf<V>>& v, V weight, V c, V sum) {
  return v.peephole ? fma(weight, c, sum) : sum;
}

template <class V>
struct LstmStep {
  using T = ScalarOf<V>;
  V a_i, a_f, a_g, a_o, i, f, g, o;
  V c_prev, c, shown, tanh_c;

  // Returns f c + i g.
  RNNFUSED_HD V carry(const Variation<T>& v, const GateSums<V>& sums, const Peepholes<V>& p, V c_before) {
    const bool coupled = v.maths == Maths::coupled_lstm;
    c_prev = c_before;
    a_i = with_peephole(v, p.i, c_prev, sums.both(0));
    i = sigmoid(clamp(a_i, v.gate_clip));
    a_f = coupled ? V{} : with_peephole(v, p.f, c_prev, sums.both(1));
    f = coupled ? ScalarOf<V>(1) - i : sigmoid(clamp(a_f, v.gate_clip));
    a_g = sums.both(coupled ? 1 : 2);
    g = tanh(clamp(a_g, v.gate_clip));
    return fma(f, c_prev, i * g);
  }
  // c' is known, and what h' is made from; returns h'.
  RNNFUSED_HD V show(const Variation<T>& v, const GateSums<V>& sums, const Peepholes<V>& p, V next, V as) {
    c = next, shown = as;
    a_o = with_peephole(v, p.o, c, sums.both(v.gates - 1));
    o = sigmoid(clamp(a_o, v.gate_clip));
    tanh_c = tanh(shown);
    return o * tanh_c;
  }
  // The gradients of o's sum and of what is shown.
  RNNFUSED_HD void unshow(const Variation<T>& v, V dh, V& da_o, V& dshown) const {
    da_o = clamp_gradient(sigmoid_gradient(dh * tanh_c, o), a_o, v.gate_clip);
    dshown = tanh_gradient(dh * o, tanh_c);
  }
  // From the gradient of f c + i g those of the other gates' sums; returns that of the c before.
  RNNFUSED_HD V uncarry(const Variation<T>& v, const Peepholes<V>& p, V ds, V (&da)[kMaxGates]) const {
    const bool coupled = v.maths == Maths::coupled_lstm;
    const V to_i = coupled ? ds * (g - c_prev) : ds * g;
    da[0] = clamp_gradient(sigmoid_gradient(to_i, i), a_i, v.gate_clip);
    da[coupled ? 1 : 2] = clamp_gradient(tanh_gradient(ds * i, g), a_g, v.gate_clip);
    const V dc = with_peephole(v, p.i, da[0], ds * f);
    if (coupled) return dc;
    da[1] = clamp_gradient(sigmoid_gradient(ds * c_prev, f), a_f, v.gate_clip);
    return with_peephole(v, p.f, da[1], dc);
  }
};

// ---- Cells whose only state is h

// The GRU's two gates and its candidate, whichever of its two forms it has.
template <class V>
struct GruStep {
  V a_r, a_u, a_n, r, u, n, n_h;

  RNNFUSED_HD GruStep(const Variation<ScalarOf<V>>& v, const GateSums<V>& sums) {
    const bool updates = v.maths == Maths::update_gru;  // r, n, u in place of r, z, n
    a_r = sums.both(0);
    a_u = updates ? sums.both(2) + v.update_bias : sums.both(1);
    r = sigmoid(clamp(a_r, v.gate_clip)), u = sigmoid(clamp(a_u, v.gate_clip));
    n_h = updates ? sums.both(1) : sums.h[2];
    a_n = updates ? r * n_h : v.resets() ? sums.both(2) : fma(r, n_h, sums.x[2]);
    n = tanh(clamp(a_n, v.gate_clip));
  }
};

// With a weight for each row: u = weight z of the AUGRU, the weight itself of the AGRU, and h' = h + u (n -
// h).
template <class V>
struct AttendedStep {
  V a_r, a_z, a_n, r, z, n, n_h;
  bool gated;

  RNNFUSED_HD AttendedStep(const Variation<ScalarOf<V>>& v, const GateSums<V>& sums)
      : gated(v.maths == Maths::augru) {
    const int last = v.gates - 1;
    a_r = sums.both(0), a_z = gated ? sums.both(1) : V{};
    r = sigmoid(clamp(a_r, v.gate_clip));
    z = gated ? sigmoid(clamp(a_z, v.gate_clip)) : broadcast<V>(1);
    n_h = sums.h[last];
    a_n = fma(r, n_h, sums.x[last]);
    n = tanh(clamp(a_n, v.gate_clip));
  }
  RNNFUSED_HD V next(V h, ScalarOf<V> weight) const { return fma(weight * z, n - h, h); }
  // As output_gradient(); also what comes to the weight.
  RNNFUSED_HD V gradient(const Variation<ScalarOf<V>>& v, V h, ScalarOf<V> weight, V dh, GateSums<V>& d,
                         V& dweight) const {
    const int last = v.gates - 1;
    const V u = weight * z, du = dh * (n - h), of_n = dh * u;
    const V dn = clamp_gradient(tanh_gradient(of_n, n), a_n, v.gate_clip);
    dweight = du * z;
    d.x[0] = d.h[0] = clamp_gradient(sigmoid_gradient(dn * n_h, r), a_r, v.gate_clip);
    if (gated) d.x[1] = d.h[1] = clamp_gradient(sigmoid_gradient(du * weight, z), a_z, v.gate_clip);
    d.x[last] = dn, d.h[last] = dn * r;
    return dh - of_n;
  }
};

// The sLSTM: h' = o c' / n', c' = f c + i z, n' = f n + i, with i and f held in units of e^m', the larger of
// both; or, where memory is empty, of e^a_i, whatever m is: f then multiplies zeros, and need only be finite.
template <class V>
struct ExponentialStep {
  using T = ScalarOf<V>;
  V a_i, a_f, log_f_m, i, f, z, o, c, n, m;  // the last three as the step leaves them

  RNNFUSED_HD ExponentialStep(const GateSums<V>& sums, V c_before, V n_before, V m_before) {
    a_i = sums.both(0), a_f = sums.both(1);
    log_f_m = m_before - softplus(-a_f);
    const V larger = log_f_m < a_i ? a_i : log_f_m;
    m = n_before == V{} ? a_i : larger;
    i = exp(a_i - m), f = exp(at_most(log_f_m - m, T(80)));
    z = tanh(sums.both(2)), o = sigmoid(sums.both(3));
    c = fma(f, c_before, i * z), n = fma(f, n_before, i);
  }
  RNNFUSED_HD V output() const { return o * c / n; }
  // Of the sums, and of c, n and m before, from those of h', c', n' and m'.
  RNNFUSED_HD void gradient(V c_before, V n_before, V dh, V (&d)[kMaxStateVectors], GateSums<V>& da) const {
    const V e = dh * o / n, ds = d[1] + e, dt = d[2] - e * c / n;
    const V di = fma(ds, z, dt) * i, df = fma(ds, c_before, dt * n_before) * f;
    // What reaches m' goes on to the larger of the two, or halves where they are one.
    const V dm = d[3] - di - df, half = dm * T(0.5);
    const V unequal = log_f_m > a_i ? dm : V{}, of_larger = log_f_m == a_i ? half : unequal;
    const V old = n_before == V{} ? V{} : of_larger;
    const V dlog_f = df + old;
    da.x[0] = da.h[0] = di + dm - old;
    da.x[1] = da.h[1] = dlog_f * sigmoid(-a_f);
    da.x[2] = da.h[2] = tanh_gradient(ds * i, z);
    da.x[3] = da.h[3] = sigmoid_gradient(dh * c / n, o);
    d[1] = ds * f, d[2] = dt * f, d[3] = dlog_f;
  }
};

// f / (f + i) of the MinLSTM's two gates, also where both are too small for a number.
template <class V>
RNNFUSED_HD V kept_share(V a_f, V a_i) {
  return sigmoid(softplus(-a_i) - softplus(-a_f));
}

// h' from the h before.
template <class V>
RNNFUSED_HD V next_output(const Variation<ScalarOf<V>>& v, const GateSums<V>& sums, V h) {
  if (v.maths == Maths::rnn_tanh) return tanh(clamp(sums.both(0), v.gate_clip));
  if (v.gates == 1) return relu(clamp(sums.both(0), v.gate_clip));
  if (v.maths == Maths::ligru) {
    const V z = sigmoid(clamp(sums.both(0), v.gate_clip)), n = relu(clamp(sums.both(1), v.gate_clip));
    return fma(z, h - n, n);
  }
  if (v.maths == Maths::mingru) return fma(sigmoid(sums.both(0)), sums.both(1) - h, h);
  if (v.maths == Maths::minlstm) {
    const V n = sums.both(2);
    return fma(kept_share(sums.both(0), sums.both(1)), h - n, n);
  }
  const GruStep<V> s(v, sums);
  return v.maths == Maths::update_gru ? fma(s.u, s.n - h, h) : fma(s.u, h - s.n, s.n);
}

// Of cells without a reset gate.
template <class V>
RNNFUSED_HD V light_gradient(const Variation<ScalarOf<V>>& v, const GateSums<V>& sums, V h, V dh,
                             GateSums<V>& d) {
  V of_h;
  if (v.maths == Maths::ligru) {
    const V a_z = sums.both(0), a_n = sums.both(1);
    const V z = sigmoid(clamp(a_z, v.gate_clip)), n = relu(clamp(a_n, v.gate_clip));
    of_h = dh * z;
    d.x[0] = clamp_gradient(sigmoid_gradient(dh * (h - n), z), a_z, v.gate_clip);
    d.x[1] = clamp_gradient(relu_gradient(dh - of_h, n), a_n, v.gate_clip);
  } else if (v.maths == Maths::mingru) {
    const V z = sigmoid(sums.both(0)), n = sums.both(1), of_n = dh * z;
    d.x[0] = sigmoid_gradient(dh * (n - h), z);
    d.x[1] = of_n;
    of_h = dh - of_n;
  } else {
    const V a_f = sums.both(0), a_i = sums.both(1), share = kept_share(a_f, a_i);
    const V dlog = sigmoid_gradient(dh * (h - sums.both(2)), share);  // of log f - log i
    of_h = dh * share;
    d.x[0] = dlog * sigmoid(-a_f);
    d.x[1] = -dlog * sigmoid(-a_i);
    d.x[2] = dh - of_h;
  }
  for (int g = 0; g < v.gates; ++g) d.h[g] = d.x[g];
  return of_h;
}

// The gradients of the sums; returns that of the h before, but for what goes through the product.
template <class V>
RNNFUSED_HD V output_gradient(const Variation<ScalarOf<V>>& v, const GateSums<V>& sums, V h, V dh,
                              GateSums<V>& d) {
  if (v.gates == 1) {
    const V a = sums.both(0), held = clamp(a, v.gate_clip);
    const V da = v.maths == Maths::rnn_tanh ? tanh_gradient(dh, tanh(held)) : relu_gradient(dh, relu(held));
    d.x[0] = d.h[0] = clamp_gradient(da, a, v.gate_clip);
    return V{};
  }
  if (v.maths >= Maths::ligru) return light_gradient(v, sums, h, dh, d);
  const GruStep<V> s(v, sums);
  const bool updates = v.maths == Maths::update_gru;
  const V share = dh * s.u, rest = dh - share;  // of whichever the gate stands for
  const V dn = clamp_gradient(tanh_gradient(updates ? share : rest, s.n), s.a_n, v.gate_clip);
  const V toward = updates ? s.n - h : h - s.n;
  const V dr = clamp_gradient(sigmoid_gradient(dn * s.n_h, s.r), s.a_r, v.gate_clip);
  const V du = clamp_gradient(sigmoid_gradient(dh * toward, s.u), s.a_u, v.gate_clip);
  d.x[0] = d.h[0] = dr;
  if (updates) {
    d.x[1] = d.h[1] = dn * s.r;
    d.x[2] = d.h[2] = du;
    return rest;
  }
  d.x[1] = d.h[1] = du;
  d.x[2] = dn, d.h[2] = dn * s.r;
  if (v.resets()) d.x[0] = d.h[0] = V{}, d.h[2] = dn;  // the reset gate's: reset_gradient
  return share;
}

// The reset gate, where it is applied before the product.
template <class V>
RNNFUSED_HD V reset_gate(const Variation<ScalarOf<V>>& v, V sum) {
  return sigmoid(clamp(sum, v.gate_clip));
}
// Of its sum, from that of r h.
template <class V>
RNNFUSED_HD V reset_gradient(const Variation<ScalarOf<V>>& v, V sum, V h, V dproduct) {
  return clamp_gradient(sigmoid_gradient(dproduct * h, reset_gate(v, sum)), sum, v.gate_clip);
}

}  // namespace rnnfused::RNNFUSED_ISA
