// In the place of csrc/torch/gpu.cpp in the extension whose GPU is the emulator: tensors on the CPU take the
// CUDA drivers' way.
#include "torch/gpu.h"

#include "plain_matmul.h"

namespace rnnfused::gpu {

bool serves(const c10::Device& device) { return device.is_cpu(); }
std::string places() { return "the CPU (which plays the GPU)"; }
cuda::StreamHandle current_stream(const c10::Device&) { return nullptr; }
std::unique_ptr<cuda::Matmul> matmul(const c10::Device&) { return std::make_unique<cuda::PlainMatmul>(); }
Index chunk_bytes() { return 8 << 10; }  // so little that small tests run in several chunks

}  // namespace rnnfused::gpu
