// A vector of a layer's units, with what its options bring: norms applied, c settled, states kept, and the
// gradients of all that. How a row's norms come about and where parameters lie is the machine's business.
#pragma once

#include "cells/varied.h"

namespace rnnfused::RNNFUSED_ISA {

// What normalises a quantity of a row.
template <class T>
struct Norm {
  T mean, scale;
  template <class V>
  RNNFUSED_HD V operator()(V x) const {
    return (x - mean) * scale;
  }
};
// Of what x feeds, or of everything; of what h feeds; of c.
template <class T>
struct RowNorms {
  Norm<T> x, h, c;
};
constexpr int kRowNorms = 3;

constexpr double kNormEps = 1e-5;  // inside the root

// Of the gradients of what a norm gave, times its weights: their mean, and that of each times its normal
// form.
template <class T>
struct NormSums {
  T mean, along;
};
template <class V, class T = ScalarOf<V>>
RNNFUSED_HD V unnormed(const Norm<T>& norm, const NormSums<T>& sums, V d, V weight, V normal) {
  return norm.scale * (fma(d, weight, -normal * sums.along) - sums.mean);
}

// Parameter(rows, row, otherwise): the units' part of a row of parameters, or `otherwise` where there are
// none.
template <class V, class Parameter>
class VariedUnits {
  using T = ScalarOf<V>;

 public:
  RNNFUSED_HD VariedUnits(const Variation<T>& v, Parameter parameter) : v_(v), parameter_(parameter) {}

  RNNFUSED_HD Peepholes<V> peepholes() const {
    if (!v_.peephole) return {V{}, V{}, V{}};
    const bool coupled = v_.maths == Maths::coupled_lstm;
    return {parameter_(v_.peephole, 0, T(0)), coupled ? V{} : parameter_(v_.peephole, 1, T(0)),
            parameter_(v_.peephole, v_.peepholes() - 1, T(0))};
  }

  // Of the IndRNN, whose h enters unit by unit.
  RNNFUSED_HD GateSums<V> with_unit(GateSums<V> sums, V h) const {
    if (v_.unit) sums.h[0] = fma(unit(), h, sums.h[0]);
    return sums;
  }
  RNNFUSED_HD V unit() const { return parameter_(v_.unit, 0, T(0)); }

  // ---- Norms

  // Before gains and shifts.
  RNNFUSED_HD GateSums<V> normal(const GateSums<V>& raw, const RowNorms<T>& norms) const {
    GateSums<V> all{};
    const bool joint = v_.gate_norm == GateNorm::joint;
    for (int g = 0; g < v_.gates; ++g) {
      all.x[g] = norms.x(joint ? raw.both(g) : raw.x[g]);
      if (v_.gate_norm == GateNorm::separate) all.h[g] = norms.h(raw.h[g]);
    }
    return all;
  }
  // As the maths takes them.
  RNNFUSED_HD GateSums<V> normalised(const GateSums<V>& raw, const RowNorms<T>& norms) const {
    if (v_.gate_norm == GateNorm::none) return raw;
    GateSums<V> all = normal(raw, norms);
    for (int g = 0; g < v_.gates; ++g) {
      all.x[g] = fma(all.x[g], norm_ih_weight(g), parameter_(v_.norm_ih_bias, g, T(0)));
      if (v_.gate_norm == GateNorm::input) all.h[g] = raw.h[g];
      if (v_.gate_norm == GateNorm::separate)
        all.h[g] = fma(all.h[g], norm_hh_weight(g), parameter_(v_.norm_hh_bias, g, T(0)));
    }
    return all;
  }
  RNNFUSED_HD V norm_ih_weight(int gate) const { return parameter_(v_.norm_ih_weight, gate, T(1)); }
  RNNFUSED_HD V norm_hh_weight(int gate) const { return parameter_(v_.norm_hh_weight, gate, T(1)); }
  RNNFUSED_HD V norm_c_weight() const { return parameter_(v_.norm_c_weight, 0, T(1)); }
  RNNFUSED_HD V norm_of_c(const RowNorms<T>& norms, V c) const {
    return fma(norms.c(c), norm_c_weight(), parameter_(v_.norm_c_bias, 0, T(0)));
  }

  // ---- The LSTM

  // What the norm of c is made of.
  RNNFUSED_HD V to_norm(V carried) const {
    return v_.cell_norm == CellNorm::carried ? carried : clamp(carried, v_.cell_clip);
  }
  // c' and what h' is made from, of f c + i g.
  RNNFUSED_HD void settle(const RowNorms<T>& norms, V carried, V& before_clip, V& c, V& shown) const {
    before_clip = v_.cell_norm == CellNorm::carried ? norm_of_c(norms, carried) : carried;
    c = clamp(before_clip, v_.cell_clip);
    shown = v_.cell_norm == CellNorm::output ? norm_of_c(norms, c) : c;
  }

  // A step as forward had it, for backward.
  struct Shown {
    LstmStep<V> step;
    Peepholes<V> p;
    V carried, before_clip;
  };
  RNNFUSED_HD Shown shown(const RowNorms<T>& norms, const GateSums<V>& gates, V c_before) const {
    Shown of;
    of.p = peepholes();
    of.carried = of.step.carry(v_, gates, of.p, c_before);
    V c, as;
    settle(norms, of.carried, of.before_clip, c, as);
    of.step.show(v_, gates, of.p, c, as);
    return of;
  }
  RNNFUSED_HD V normal_c(const Shown& of, const RowNorms<T>& norms) const {
    return norms.c(v_.cell_norm == CellNorm::carried ? of.carried : of.step.c);
  }
  // From the gradients of h' and c' that of o's sum and that of f c + i g; where c is normalised, of what the
  // norm gave in its place.
  RNNFUSED_HD V unshow(const Shown& of, V dh, V dc, V& da_o) const {
    V d;
    of.step.unshow(v_, dh, da_o, d);
    return v_.cell_norm == CellNorm::output ? d : unclipped(of, da_o, dc, d);
  }
  // And from that of what the norm gave that of f c + i g.
  RNNFUSED_HD V unnormed_c(const Shown& of, const RowNorms<T>& norms, const NormSums<T>& sums, V dc, V da_o,
                           V d) const {
    const V inner = unnormed(norms.c, sums, d, norm_c_weight(), normal_c(of, norms));
    return v_.cell_norm == CellNorm::carried ? inner : unclipped(of, da_o, dc, inner);
  }
  // From the gradient of f c + i g and that of o's sum, those of all sums; returns that of the c before.
  RNNFUSED_HD V uncarry(const Shown& of, V ds, V da_o, GateSums<V>& d) const {
    V da[kMaxGates]{};
    const V dc = of.step.uncarry(v_, of.p, ds, da);
    da[v_.gates - 1] = da_o;
    for (int g = 0; g < v_.gates; ++g) d.x[g] = d.h[g] = da[g];
    return dc;
  }

 private:
  RNNFUSED_HD V unclipped(const Shown& of, V da_o, V dc, V d) const {
    return clamp_gradient(with_peephole(v_, of.p.o, da_o, dc + d), of.before_clip, v_.cell_clip);
  }

  const Variation<T>& v_;
  Parameter parameter_;
};

// ---- What is kept: `kept` is positive where a unit's state stays, if that is drawn

template <class V>
RNNFUSED_HD V mixed(const Variation<ScalarOf<V>>& v, int state, V kept, V before, V next) {
  const auto p = v.zoneout_of(state);
  if (!(p > 0)) return next;
  if (!v.drawn) return fma(broadcast<V>(p), before, (1 - p) * next);
  return kept > ScalarOf<V>(0) ? before : next;
}
// Of a gradient what goes to the value before, and leaves the rest.
template <class V>
RNNFUSED_HD V split(const Variation<ScalarOf<V>>& v, int state, V kept, V& d) {
  const auto p = v.zoneout_of(state);
  if (!(p > 0)) return V{};
  const V all = d;
  if (!v.drawn) {
    d = (1 - p) * all;
    return p * all;
  }
  d = kept > ScalarOf<V>(0) ? V{} : all;
  return kept > ScalarOf<V>(0) ? all : V{};
}

// What h is multiplied with on its way into the product, by whether it is dropped.
template <class T>
RNNFUSED_HD T dropout_factor(const Variation<T>& v, bool dropped) {
  return dropped || !(v.recurrent_dropout < 1) ? T(0) : T(1 / (1 - v.recurrent_dropout));
}

}  // namespace rnnfused::RNNFUSED_ISA
