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
                       const Layout& layout, std::string_view layer, bool save);
Tensors call_backward(const OptionalList& grads, const at::Tensor& input, at::TensorList hx,
                      at::TensorList params, const Layout& layout, const at::Tensor& output,
                      const at::Tensor& tape, std::string_view layer, at::IntArrayRef wanted);

// What Python calls where nobody watches (watchers.h): the output and the final states, differentiable.
RNNFUSED_API Tensors recurrent_unwatched(const Arguments& arguments);

// Whether that is done before another thread would have taken Python's lock: a few microseconds, on the CPU.
RNNFUSED_API bool is_short(const Arguments& unwatched);

// What a layer whose weights have no derivative has computed: to go back through it is an error.
Tensors without_gradients(const Arguments& arguments, Tensors outputs);

// The operators' kernels for the Autograd keys.
Tensors recurrent_autograd(c10::DispatchKeySet keys, const at::Tensor& input, at::TensorList hx,
                           at::TensorList params, const OptionalTensor& batch_sizes,
                           const OptionalTensor& lengths, const OptionalTensor& resets,
                           std::string_view layer, bool save);
Tensors backward_autograd(c10::DispatchKeySet keys, const OptionalList& grads, const at::Tensor& input,
                          at::TensorList hx, at::TensorList params, const OptionalTensor& batch_sizes,
                          const OptionalTensor& lengths, const OptionalTensor& resets,
                          const at::Tensor& output, const at::Tensor& tape, std::string_view layer,
                          at::IntArrayRef wanted);
Tensors tangent_autograd(c10::DispatchKeySet keys, const OptionalList& tangents, const OptionalList& grads,
                         const OptionalList& grad_tangents, const at::Tensor& input, at::TensorList hx,
                         at::TensorList params, const OptionalTensor& batch_sizes,
                         const OptionalTensor& lengths, const OptionalTensor& resets,
                         const at::Tensor& output, std::string_view layer, bool outputs,
                         at::IntArrayRef wanted, const OptionalTensor& tape);

}  // namespace rnnfused
