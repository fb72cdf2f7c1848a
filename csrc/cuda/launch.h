// What a launch is, for the device's launch.cuh and for the emulator's.
#pragma once

namespace rnnfused {
namespace cuda {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

using Stream = void*;  // a cudaStream_t, for callers that see no CUDA header

struct LaunchConfig {
  Dim3 grid, block;
  int shared_bytes = 0;
  int cluster = 1;  // blocks, along x; more than 1 from sm_90
  bool cooperative = false;
};

}  // namespace cuda
}  // namespace rnnfused
