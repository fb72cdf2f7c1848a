#include "cuda/drivers.h"
#include "torch/gpu.h"
#include "torch/tangents_gpu.h"

namespace rnnfused {

template <class T>
void tangent_forward_on_gpu(const Inputs& in, const TangentForward<T>& step) {
  cuda::tangent_forward(in.cell, step, gpu::current_stream(in.x.device()));
}

template <class T>
void tangent_backward_on_gpu(const Inputs& in, const TangentBackward<T>& step) {
  cuda::tangent_backward(in.cell, step, gpu::current_stream(in.x.device()));
}

template void tangent_forward_on_gpu(const Inputs&, const TangentForward<float>&);
template void tangent_forward_on_gpu(const Inputs&, const TangentForward<double>&);
template void tangent_backward_on_gpu(const Inputs&, const TangentBackward<float>&);
template void tangent_backward_on_gpu(const Inputs&, const TangentBackward<double>&);

}  // namespace rnnfused
