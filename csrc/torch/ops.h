// One layer of a recurrent network on tensors, in one or two directions: what Python calls.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace rnnfused {

using OptionalTensors = std::vector<std::optional<at::Tensor>>;

// y [T, B, D P] (or [rows, D P]), h_n [D, B, P], c_n [D, B, H] (undefined for cells without c), tape
// (undefined unless `save`; small if backward is to `recompute` the gates).
using ForwardResult =
    std::tuple<at::Tensor, at::Tensor, std::optional<at::Tensor>, std::optional<at::Tensor>>;

// x: [T, B, I], or packed rows [rows, I] with batch_sizes [T] (int64 on the CPU). h0 [D, B, P], c0 [D, B, H].
// weights: for each direction W_ih, W_hh, b_ih, b_hh, W_hr; the last three may be absent.
ForwardResult layer_forward(const std::string& cell, const at::Tensor& x, const at::Tensor& h0,
                            const std::optional<at::Tensor>& c0, const OptionalTensors& weights,
                            const std::optional<at::Tensor>& batch_sizes, bool save, bool recompute);

// Layers over one another without a tape, for what nothing differentiates and no dropout comes between: y as
// x lies, h_n [L D, B, P], c_n [L D, B, H]. x: [T, B, I], [B, T, I] if batch_first, or packed rows. params:
// for each layer and direction W_ih, W_hh, then b_ih and b_hh if there are biases, then W_hr if h0 is
// narrower than c0. Throws RuntimeError, naming the argument, for what does not fit together, ValueError for
// a wrong number of params.
using StackResult = std::tuple<at::Tensor, at::Tensor, std::optional<at::Tensor>>;
StackResult stack_forward(const std::string& cell, const at::Tensor& x, const at::Tensor& h0,
                          const std::optional<at::Tensor>& c0, const std::vector<at::Tensor>& params,
                          const std::optional<at::Tensor>& batch_sizes, bool has_biases, int64_t layers,
                          bool bidirectional, bool batch_first);

// Gradients of x, h0, c0 and of every weight, in that order; absent where `wanted` (in the same order) says
// so.
OptionalTensors layer_backward(const std::string& cell, const at::Tensor& x, const at::Tensor& h0,
                               const std::optional<at::Tensor>& c0, const OptionalTensors& weights,
                               const std::optional<at::Tensor>& batch_sizes, const at::Tensor& y,
                               const at::Tensor& tape, const std::optional<at::Tensor>& dy,
                               const std::optional<at::Tensor>& dhn, const std::optional<at::Tensor>& dcn,
                               const std::vector<bool>& wanted, bool recompute);

// Throws RuntimeError unless there are kernels for the tensor's device and dtype.
void check_input(const at::Tensor& x);

// Which cells there are, which machine code runs, and how a layer would be run.
std::vector<std::string> cell_names();
std::string isa();
std::vector<std::string> available_isas();
// Mode, groups, members, shards, wave: cpu/plan.h.
std::tuple<std::string, int, int, int, int> describe_plan(const std::string& cell, int64_t steps,
                                                          int64_t batch, int64_t input, int64_t hidden,
                                                          int64_t output, int64_t layers, int64_t directions,
                                                          bool f64);

}  // namespace rnnfused
