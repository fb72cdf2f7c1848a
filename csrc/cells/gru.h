// Cho et al. (2014), with the reset gate applied after the recurrent product as in torch and cuDNN:
//   r, z = sigmoid(.), n = tanh(W_in x + b_in + r (W_hn h + b_hn)), h' = n + z (h - n).
#pragma once

#include "core/math.h"

namespace rnnfused::RNNFUSED_ISA {

struct Gru {
  static constexpr int states = 1;  // h
  static constexpr int gates = 3;   // r, z, n
  // n's two products meet only after the reset gate. In the order n_x, r, z, n_h what either product feeds is
  // one contiguous run.
  static constexpr int accumulators = 4;
  static constexpr int x_first = 0, h_first = 1;
  static constexpr int gate_of[] = {2, 0, 1, 2};
  static constexpr int taped = 4;  // n, r, z after their activation, n_h before the reset

  template <class V>
  static RNNFUSED_HD void forward(const V (&acc)[4], const V (&prev)[1], V (&next)[1], V* tape) {
    const V r = sigmoid(acc[1]), z = sigmoid(acc[2]);
    const V n = tanh(fma(r, acc[3], acc[0]));
    next[0] = fma(z, prev[0] - n, n);
    tape[0] = n, tape[1] = r, tape[2] = z, tape[3] = acc[3];
  }

  template <class V>
  static RNNFUSED_HD void backward(const V* tape, const V (&prev)[1], const V (&)[1], const V (&dnext)[1],
                                   V (&dacc)[4], V (&dprev)[1]) {
    const V n = tape[0], r = tape[1], z = tape[2], n_h = tape[3];
    const V dn = tanh_gradient(dnext[0] - dnext[0] * z, n);
    dacc[0] = dn;
    dacc[1] = sigmoid_gradient(dn * n_h, r);
    dacc[2] = sigmoid_gradient(dnext[0] * (prev[0] - n), z);
    dacc[3] = dn * r;
    dprev[0] = dnext[0] * z;
  }
};

}  // namespace rnnfused::RNNFUSED_ISA
