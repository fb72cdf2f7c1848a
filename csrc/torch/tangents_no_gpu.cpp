// In the place of tangents_cuda.cpp where the build has no CUDA compiler.
#include <c10/util/Exception.h>

#include "torch/tangents_gpu.h"

namespace rnnfused {

template <class T>
void tangent_forward_on_gpu(const Inputs&, const TangentForward<T>&) {
  TORCH_INTERNAL_ASSERT(false);
}

template <class T>
void tangent_backward_on_gpu(const Inputs&, const TangentBackward<T>&) {
  TORCH_INTERNAL_ASSERT(false);
}

template void tangent_forward_on_gpu(const Inputs&, const TangentForward<float>&);
template void tangent_forward_on_gpu(const Inputs&, const TangentForward<double>&);
template void tangent_backward_on_gpu(const Inputs&, const TangentBackward<float>&);
template void tangent_backward_on_gpu(const Inputs&, const TangentBackward<double>&);

}  // namespace rnnfused
