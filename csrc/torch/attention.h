// Operators of a layer that attends while it runs (core/attention.h), on the CPU in float32 and float64.
#pragma once

#include "torch/ops.h"

namespace rnnfused {

// One layer in one direction without a projection, on padded input, time first. attention: keys [B, S, A],
// values [B, S, V], W_q [A, H] and the score's vector [A]. mask: bool [B, S], which steps of the source there
// are. params: of a layer whose input is what it is given and, after that, the context.
struct Attending {
  const LayerOptions& options;
  at::TensorList hx, params, attention;
  const OptionalTensor& mask;
};

// input: [T, B, E]. Returns the output, the final states, the input with the contexts [T, B, E + V], the
// weights [T, B, S] and the queries [T, B, A]; with `save` also the tape.
Tensors attend(const at::Tensor& input, const Attending& of, bool save);

// grads: of the output, the final states, the input with the contexts and the weights; undefined means zeros.
// kept: the input with the contexts, weights, queries, output and tape. Returns the gradients of input, hx,
// params and attention.
Tensors attend_backward(at::TensorList grads, at::TensorList kept, const Attending& of);

}  // namespace rnnfused
