// The one place that launches a kernel. For files that nvcc compiles.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

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

namespace launch_detail {

constexpr int kSharedBytesWithoutOptIn = 48 << 10;
constexpr int kPortableCluster = 8;

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // the error is reported here, and not once more by whoever asks next
  std::string reason = cudaGetErrorString(error);
  switch (error) {
    case cudaErrorNoDevice:
      reason = "no CUDA device was found";
      break;
    case cudaErrorInsufficientDriver:
      reason = "no NVIDIA driver was found, or it is older than the CUDA version rnnfused was built with";
      break;
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
      reason =
          "rnnfused was not built for this device's architecture (build it again with "
          "RNNFUSED_CUDA_ARCHS, or without it for all)";
      break;
    case cudaErrorMemoryAllocation:
      reason = "the device is out of memory";
      break;
    case cudaErrorLaunchOutOfResources:
    case cudaErrorCooperativeLaunchTooLarge:
    case cudaErrorInvalidClusterSize:
      reason += ": the kernel needs more threads, registers or shared memory than the device can give it";
      break;
    default:
      break;
  }
  throw std::runtime_error("CUDA kernel launch: " + reason);
}

}  // namespace launch_detail

// Zeroes `count` elements on `stream`.
template <class T>
void clear(T* data, int64_t count, Stream stream) {
  if (count == 0) return;
  launch_detail::check(
      cudaMemsetAsync(data, 0, size_t(count) * sizeof(T), static_cast<cudaStream_t>(stream)));
}

// Starts `kernel` on `stream`; throws std::runtime_error where it can not be started.
template <class... P, class... A>
void launch(const LaunchConfig& config, Stream stream, void (*kernel)(P...), A&&... arguments) {
  static_assert(sizeof...(P) == sizeof...(A), "as many arguments as the kernel has parameters");
  using launch_detail::check;
  const void* function = reinterpret_cast<const void*>(kernel);
  if (config.shared_bytes > launch_detail::kSharedBytesWithoutOptIn) {
    check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, config.shared_bytes));
  }
  if (config.cluster > launch_detail::kPortableCluster) {
    check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  }

  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (config.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = unsigned(config.cluster);
    attributes[count].val.clusterDim.y = 1;
    attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  if (config.cooperative) {
    attributes[count].id = cudaLaunchAttributeCooperative;
    attributes[count].val.cooperative = 1;
    ++count;
  }
  cudaLaunchConfig_t native = {};
  native.gridDim = dim3(config.grid.x, config.grid.y, config.grid.z);
  native.blockDim = dim3(config.block.x, config.block.y, config.block.z);
  native.dynamicSmemBytes = size_t(config.shared_bytes);
  native.stream = static_cast<cudaStream_t>(stream);
  native.attrs = attributes;
  native.numAttrs = count;

  std::tuple<std::decay_t<P>...> values(std::forward<A>(arguments)...);
  std::apply(
      [&](auto&... value) {
        // A zero-sized array is no C++, and a kernel may have no parameters.
        void* pointers[sizeof...(P) + 1] = {const_cast<void*>(static_cast<const void*>(&value))..., nullptr};
        check(cudaLaunchKernelExC(&native, function, pointers));
      },
      values);
}

}  // namespace cuda
}  // namespace rnnfused
