// In the place of gpu.cpp and cuda_backend.cpp where the build has no CUDA compiler.
#include <c10/util/Exception.h>

#include "torch/backends.h"
#include "torch/gpu.h"

namespace rnnfused {
namespace gpu {

bool serves(const c10::Device&) { return false; }

std::string places() {
  return "the CPU (rnnfused was built without CUDA kernels: build it where nvcc is found; RNNFUSED_CUDA=1 "
         "makes "
         "the build insist)";
}

}  // namespace gpu

DeviceWeights weights_on_gpu(const Inputs&) { TORCH_INTERNAL_ASSERT(false); }
ForwardTensors forward_on_gpu(const Inputs&, bool, bool, const DeviceWeights*) {
  TORCH_INTERNAL_ASSERT(false);
}
Index step_bytes_on_gpu(const Inputs&, const DeviceWeights&, const StepTensors&) {
  TORCH_INTERNAL_ASSERT(false);
}
void step_on_gpu(const Inputs&, const DeviceWeights&, const StepTensors&) { TORCH_INTERNAL_ASSERT(false); }
void backward_on_gpu(const Inputs&, const BackwardTensors&, bool) { TORCH_INTERNAL_ASSERT(false); }

}  // namespace rnnfused
