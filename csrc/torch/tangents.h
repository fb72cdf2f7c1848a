// Derivatives of a layer beyond its gradients: tangents of its outputs (forward mode), tangents of its
// gradients (second derivatives), and the gradients of every row's gates.
//
// A cell's maths on dual numbers (core/dual.h) gives the elementwise part of a step with its tangents, in one
// kernel. Since y holds every h, all products but those of h' forward and of the gates' gradients backward
// are one product for all rows. Everything runs below autograd and without autocast: guards are the caller's.
// Tensors are as the layer's own: of float32 or float64, on its device, in its layout; they need not be
// contiguous.
#pragma once

#include "torch/inputs.h"

namespace rnnfused {

// One for each of a layer's inputs, shaped as it: undefined means zeros, or not wanted.
struct LayerTensors {
  at::Tensor x, h0, c0;
  std::vector<at::Tensor> weights;  // [directions * kSlots], or empty if all are undefined
};

// One for each of a layer's outputs; undefined means zeros.
struct OutputTensors {
  at::Tensor y, hn, cn, cells;
};

// Which of the inputs results are wanted for: x, h0, c0, then every weight.
using Wanted = std::vector<bool>;

struct LayerTangents {
  OutputTensors outputs;
  LayerTensors gradients;  // those that were wanted
};

// Along tangents of the layer's inputs: the tangents of its outputs and, along those of the outer gradients
// too, the tangents of its gradients. What is undefined is zero. `y` is the layer's output. `tape`, if it is
// there, is the one that the CPU's forward kept of every row's gates: tangents of outputs alone take them
// from it, and compute no gate again.
//
// They are the gradients of sum(tangents * the layer's gradients), too, with respect to the outer gradients
// and to the inputs, since the Hessian is symmetric: double backward.
LayerTangents layer_tangents(const Inputs& in, const at::Tensor& y, const at::Tensor& tape,
                             const OutputTensors& outer, const OutputTensors& outer_tangents,
                             const LayerTensors& tangents, const Wanted& wanted);

struct GateGradients {
  struct Direction {
    // Of what W_ih x + b_ih and W_hh h + b_hh give [rows, G * H], in the order of the weights' rows; one
    // tensor where the two are summed.
    at::Tensor input, recurrent;
    at::Tensor h_before;  // what the recurrent product read [rows, P]
    // With a projection, what it read [rows, H] and the gradient of what it gave [rows, P].
    at::Tensor unprojected, projected;
  };
  std::vector<Direction> directions;
  at::Tensor dx, dh0, dc0;
};

// Those of every row, from which weights' gradients of any groups of rows follow.
GateGradients gate_gradients(const Inputs& in, const at::Tensor& y, const OutputTensors& outer);

}  // namespace rnnfused
