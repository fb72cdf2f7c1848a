// Elman (1990), "Finding structure in time": h' = act(W_ih x + b_ih + W_hh h + b_hh).
#pragma once

#include "core/math.h"

namespace rnnfused::RNNFUSED_ISA {

struct TanhActivation {
  template <class V>
  static RNNFUSED_HD V forward(V x) {
    return tanh(x);
  }
  template <class V>
  static RNNFUSED_HD V backward(V dy, V y) {
    return tanh_gradient(dy, y);
  }
};

struct ReluActivation {
  template <class V>
  static RNNFUSED_HD V forward(V x) {
    return relu(x);
  }
  template <class V>
  static RNNFUSED_HD V backward(V dy, V y) {
    return relu_gradient(dy, y);
  }
};

template <class Activation>
struct Rnn {
  static constexpr int states = 1;  // h
  static constexpr int gates = 1;
  static constexpr int accumulators = 1;
  static constexpr int x_first = 0, h_first = 0;
  static constexpr int gate_of[] = {0};
  static constexpr int taped = 0;  // backward reads the output itself

  template <class V>
  static RNNFUSED_HD void forward(const V (&acc)[1], const V (&)[1], V (&next)[1], V*) {
    next[0] = Activation::forward(acc[0]);
  }

  template <class V>
  static RNNFUSED_HD void backward(const V*, const V (&)[1], const V (&next)[1], const V (&dnext)[1],
                                   V (&dacc)[1], V (&dprev)[1]) {
    dacc[0] = Activation::backward(dnext[0], next[0]);
    dprev[0] = V{};
  }
};

using RnnTanh = Rnn<TanhActivation>;
using RnnRelu = Rnn<ReluActivation>;

}  // namespace rnnfused::RNNFUSED_ISA
