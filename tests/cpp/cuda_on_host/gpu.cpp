// In the place of csrc/torch/gpu.cpp in the extension whose GPU is the emulator: tensors on the CPU take the
// CUDA drivers' way.
#include "torch/gpu.h"

#include <cstdlib>

#include "plain_matmul.h"

namespace rnnfused::gpu {

bool serves(const c10::Device& device) { return device.is_cpu(); }
std::string places() { return "the CPU (which plays the GPU)"; }
// torch's default allows it, with which float32 would be tested to 3 digits only.
bool allows_tf32() { return std::getenv("RNNFUSED_EMULATION_TF32") != nullptr; }
cuda::StreamHandle current_stream(const c10::Device&) { return nullptr; }
std::unique_ptr<cuda::Matmul> matmul(const c10::Device&) { return std::make_unique<cuda::PlainMatmul>(); }
Index chunk_bytes() { return 8 << 10; }  // so little that small tests run in several chunks

}  // namespace rnnfused::gpu
