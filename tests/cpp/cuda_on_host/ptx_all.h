// The kernels of ptx_all.cu, for the host's tests of what they compute.
#pragma once

#include <cuda/launch.cuh>
#include <cuda/ptx.cuh>

namespace rnnfused {
namespace cuda {

void use_everything(const float* in, float* out, uint32_t* words, uint64_t* wide, Half* halves,
                    BFloat16* bfloats, Stream stream);

}  // namespace cuda
}  // namespace rnnfused
