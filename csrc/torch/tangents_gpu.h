// The elementwise part of one step on the current stream of a GPU.
#pragma once

#include "core/tangent.h"
#include "torch/inputs.h"

namespace rnnfused {

template <class T>
void tangent_forward_on_gpu(const Inputs& in, const TangentForward<T>& step);
template <class T>
void tangent_backward_on_gpu(const Inputs& in, const TangentBackward<T>& step);

}  // namespace rnnfused
