// For machines without a GPU: a launch must fail in words. Ends with 0 if it did, 77 (skipped) where it could
// run.
#include <cstdio>
#include <cuda/launch.cuh>
#include <cuda/ptx.cuh>
#include <string>

namespace {
__global__ void nothing() {}
}  // namespace

int main() {
  try {
    rnnfused::cuda::launch({}, nullptr, nothing);
  } catch (const std::runtime_error& error) {
    std::printf("%s\n", error.what());
    const std::string words = error.what();
    const bool clear = words.find("no NVIDIA driver was found") != std::string::npos ||
                       words.find("no CUDA device was found") != std::string::npos;
    return clear ? 0 : 1;
  }
  return 77;
}
