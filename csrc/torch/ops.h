// The operator's kernels, on tensors with memory: what both the dispatcher and the eager fast path call. They
// record nothing and look at no mode; autograd.h and library.cpp are what lies above them.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <tuple>
#include <vector>

#include "torch/arguments.h"

namespace rnnfused {

struct KeptWeights;

using Tensors = std::vector<at::Tensor>;

// The output (none of a step), the final states and, if asked for, c of every step; with `save`, which one
// layer can, also the tape for backward. `kept`: the weights, kept from call to call; null packs them anew.
Tensors recurrent(const Arguments& arguments, bool save, KeptWeights* kept = nullptr);

// What forward returned: its first output and the tape.
struct Kept {
  const at::Tensor &output, &tape;
};

// The gradients `wanted`, in that order: 0 is the input's, then come those of hx and of params. outer: those
// of what forward returned, undefined where zero.
Tensors recurrent_backward(const Arguments& arguments, at::TensorList outer, const Kept& kept,
                           at::IntArrayRef wanted);

// Derivatives beyond the gradients, in a direction: `tangents` are those of the input, of hx and of params
// (in this order), outer_tangents those of outer; undefined means zeros. Returns, if `outputs`, the tangents
// of what forward returns, then those of the gradients `wanted`.
struct Directions {
  at::TensorList tangents, outer, outer_tangents;
};
// `kept`: its tape may be undefined, and is taken where tapes_for_tangents holds.
Tensors recurrent_tangent(const Arguments& arguments, const Directions& directions, const Kept& kept,
                          bool outputs, at::IntArrayRef wanted);
// Whether forward mode gains by the tape: it holds every gate, in the type that is computed in, row by row as
// derivatives beyond the gradients see them.
bool tapes_for_tangents(const Arguments& arguments);

// The gradients of every row's gates, from which those of weights follow for any groups of rows: for each
// direction those that the input feeds [rows, G H], those that h feeds [rows, G H], and the h that fed them
// [rows, P]; with a projection also what it read [rows, H] and the gradient of what it gave [rows, P].
Tensors recurrent_gate_gradients(const Arguments& arguments, at::TensorList outer, const at::Tensor& output);

// Throws what the call would throw.
RNNFUSED_API void check_call(const std::string& layer, const at::Tensor& input, at::TensorList hx,
                             at::TensorList params, const Layout& layout);

// Which cells there are, which machine code runs, and how a layer would be run.
RNNFUSED_API std::vector<std::string> cell_names();
RNNFUSED_API std::string isa();
RNNFUSED_API std::vector<std::string> available_isas();
// How many terms of a product one instruction of the CPU adds in each lane; one where numbers of the type are
// widened first.
RNNFUSED_API int64_t terms_at_once(at::ScalarType type);
// Calls that lost their time waiting for processors, and whether calls run on one thread now: cpu/threads.h.
RNNFUSED_API std::pair<int64_t, bool> scarcity();
// Mode, groups, members, shards, wave: cpu/plan.h.
RNNFUSED_API std::tuple<std::string, int, int, int, int> describe_plan(const std::string& cell, int64_t steps,
                                                                       int64_t batch, int64_t input,
                                                                       int64_t hidden, int64_t output,
                                                                       int64_t layers, int64_t directions,
                                                                       at::ScalarType type);

}  // namespace rnnfused
