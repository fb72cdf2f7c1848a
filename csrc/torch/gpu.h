// What of a GPU only torch knows: which devices are one, the current stream, products of matrices. The
// proving ground (tests/cpp/cuda_on_host) has its own version of it, in which the CPU plays the GPU.
#pragma once

#include <c10/core/Device.h>

#include <memory>
#include <string>

#include "cuda/matmul.h"

namespace rnnfused::gpu {

// Whether the CUDA drivers of this build take tensors on the device.
bool serves(const c10::Device& device);

// Where tensors may be, for messages.
std::string places();

// Whether float32 layers may be multiplied as TF32, where torch.nn's would be:
// torch.backends.cudnn.rnn.fp32_precision, torch.backends.cudnn.allow_tf32.
bool allows_tf32();

// The device's current stream.
cuda::StreamHandle current_stream(const c10::Device& device);

std::unique_ptr<cuda::Matmul> matmul(const c10::Device& device);

// Bytes of gates that inference holds at once, where one step does not take more.
Index chunk_bytes();

}  // namespace rnnfused::gpu
