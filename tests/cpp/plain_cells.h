// The cells by their equations, in double.
#pragma once

#include "cells/all.h"
#include "sequence_case.h"

namespace rnnfused::test {

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
inline double sigmoid_slope(double y) { return y * (1 - y); }
inline double tanh_slope(double y) { return 1 - y * y; }

inline void rnn_tanh_forward(Unit& u) { u.next[0] = std::tanh(u.x[0] + u.h[0]); }
inline UnitGradient rnn_tanh_backward(const Unit& u, const double (&dnext)[2]) {
  const double da = dnext[0] * tanh_slope(u.next[0]);
  return {{da}, {da}, {}};
}

inline void rnn_relu_forward(Unit& u) { u.next[0] = std::fmax(u.x[0] + u.h[0], 0); }
inline UnitGradient rnn_relu_backward(const Unit& u, const double (&dnext)[2]) {
  const double da = u.next[0] > 0 ? dnext[0] : 0;
  return {{da}, {da}, {}};
}

struct LstmGates {
  double i, f, g, o;
  explicit LstmGates(const Unit& u)
      : i(sigmoid(u.x[0] + u.h[0])),
        f(sigmoid(u.x[1] + u.h[1])),
        g(std::tanh(u.x[2] + u.h[2])),
        o(sigmoid(u.x[3] + u.h[3])) {}
};
inline void lstm_forward(Unit& u) {
  const LstmGates a(u);
  u.next[1] = a.f * u.prev[1] + a.i * a.g;
  u.next[0] = a.o * std::tanh(u.next[1]);
}
inline UnitGradient lstm_backward(const Unit& u, const double (&dnext)[2]) {
  const LstmGates a(u);
  const double tanh_c = std::tanh(u.next[1]);
  const double dc = dnext[1] + dnext[0] * a.o * tanh_slope(tanh_c);
  const double di = dc * a.g * sigmoid_slope(a.i), df = dc * u.prev[1] * sigmoid_slope(a.f);
  const double dg = dc * a.i * tanh_slope(a.g), d_o = dnext[0] * tanh_c * sigmoid_slope(a.o);
  return {{di, df, dg, d_o}, {di, df, dg, d_o}, {0, dc * a.f}};
}

struct GruGates {
  double r, z, n;
  explicit GruGates(const Unit& u)
      : r(sigmoid(u.x[0] + u.h[0])), z(sigmoid(u.x[1] + u.h[1])), n(std::tanh(u.x[2] + r * u.h[2])) {}
};
inline void gru_forward(Unit& u) {
  const GruGates a(u);
  u.next[0] = (1 - a.z) * a.n + a.z * u.prev[0];
}
inline UnitGradient gru_backward(const Unit& u, const double (&dnext)[2]) {
  const GruGates a(u);
  const double dn = dnext[0] * (1 - a.z) * tanh_slope(a.n);
  const double dr = dn * u.h[2] * sigmoid_slope(a.r), dz = dnext[0] * (u.prev[0] - a.n) * sigmoid_slope(a.z);
  return {{dr, dz, dn}, {dr, dz, dn * a.r}, {dnext[0] * a.z}};
}

struct Tested {
  CellId id;
  PlainCell plain;
};
inline const Tested kTested[] = {
    {CellId::rnn_tanh, {1, 1, rnn_tanh_forward, rnn_tanh_backward}},
    {CellId::rnn_relu, {1, 1, rnn_relu_forward, rnn_relu_backward}},
    {CellId::lstm, {4, 2, lstm_forward, lstm_backward}},
    {CellId::gru, {3, 1, gru_forward, gru_backward}},
};

}  // namespace rnnfused::test
