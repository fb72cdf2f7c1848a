// Derivatives of the operators: nodes of torch's autograd graph, the same for the eager fast path and for
// what comes through the dispatcher.
#pragma once

#include <ATen/core/List.h>
#include <c10/core/DispatchKeySet.h>

#include <optional>
#include <string_view>

#include "torch/ops.h"

namespace rnnfused {

using OptionalList = c10::List<std::optional<at::Tensor>>;

// The operators' signatures, as their schemas (library.cpp) have them.
Tensors call_recurrent(const at::Tensor& input, at::TensorList hx, at::TensorList params,
                       const std::optional<at::Tensor>& batch_sizes, std::string_view layer, bool save);
Tensors call_backward(const OptionalList& grads, const at::Tensor& input, at::TensorList hx,
                      at::TensorList params, const std::optional<at::Tensor>& batch_sizes,
                      const at::Tensor& output, const at::Tensor& tape, std::string_view layer,
                      at::IntArrayRef wanted);

// What Python calls first: the output and the final states, differentiable; nothing where somebody wants to
// see the call, which must then go to the operator.
RNNFUSED_API std::optional<Tensors> recurrent_unwatched(std::string_view layer, const at::Tensor& input,
                                                        at::TensorList hx, at::TensorList params,
                                                        const std::optional<at::Tensor>& batch_sizes);

// Whether recurrent_unwatched is done before another thread would have taken Python's lock: a few
// microseconds, on the CPU. False where it is not to be known.
RNNFUSED_API bool is_short(const at::Tensor& input, at::TensorList params);

// The operators' kernels for the Autograd keys.
Tensors recurrent_autograd(c10::DispatchKeySet keys, const at::Tensor& input, at::TensorList hx,
                           at::TensorList params, const std::optional<at::Tensor>& batch_sizes,
                           std::string_view layer, bool save);
Tensors backward_autograd(c10::DispatchKeySet keys, const OptionalList& grads, const at::Tensor& input,
                          at::TensorList hx, at::TensorList params,
                          const std::optional<at::Tensor>& batch_sizes, const at::Tensor& output,
                          const at::Tensor& tape, std::string_view layer, at::IntArrayRef wanted);
Tensors tangent_autograd(c10::DispatchKeySet keys, const OptionalList& tangents, const OptionalList& grads,
                         const OptionalList& grad_tangents, const at::Tensor& input, at::TensorList hx,
                         at::TensorList params, const std::optional<at::Tensor>& batch_sizes,
                         const at::Tensor& output, std::string_view layer, bool outputs,
                         at::IntArrayRef wanted);

}  // namespace rnnfused
