// Hochreiter & Schmidhuber (1997) with the forget gate of Gers et al. (2000):
//   i, f, o = sigmoid(.), g = tanh(.), c' = f c + i g, h' = o tanh(c').
#pragma once

#include "core/math.h"

namespace rnnfused::RNNFUSED_ISA {

struct Lstm {
  static constexpr int states = 2;  // h, c
  static constexpr int gates = 4;   // i, f, g, o
  static constexpr int accumulators = 4;
  static constexpr int x_first = 0, h_first = 0;
  static constexpr int gate_of[] = {0, 1, 2, 3};
  static constexpr int taped = 4;  // the gates after their activation

  template <class V>
  static RNNFUSED_HD void forward(const V (&acc)[4], const V (&prev)[2], V (&next)[2], V* tape) {
    const V i = sigmoid(acc[0]), f = sigmoid(acc[1]), g = tanh(acc[2]), o = sigmoid(acc[3]);
    next[1] = fma(f, prev[1], i * g);
    next[0] = o * tanh(next[1]);
    tape[0] = i, tape[1] = f, tape[2] = g, tape[3] = o;
  }

  template <class V>
  static RNNFUSED_HD void backward(const V* tape, const V (&prev)[2], const V (&next)[2], const V (&dnext)[2],
                                   V (&dacc)[4], V (&dprev)[2]) {
    const V i = tape[0], f = tape[1], g = tape[2], o = tape[3];
    const V tanh_c = tanh(next[1]);
    const V dc = dnext[1] + tanh_gradient(dnext[0] * o, tanh_c);
    dacc[0] = sigmoid_gradient(dc * g, i);
    dacc[1] = sigmoid_gradient(dc * prev[1], f);
    dacc[2] = tanh_gradient(dc * i, g);
    dacc[3] = sigmoid_gradient(dnext[0] * tanh_c, o);
    dprev[0] = V{};
    dprev[1] = dc * f;
  }
};

}  // namespace rnnfused::RNNFUSED_ISA
