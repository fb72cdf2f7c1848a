// The one place that launches a kernel. For files that nvcc compiles.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "cuda/launch.h"

namespace rnnfused {
namespace cuda {

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

// A launch as the runtime takes it; allows the kernel what it needs beyond the ordinary.
struct Native {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};

  Native(const LaunchConfig& from, Stream stream, const void* function) {
    if (from.shared_bytes > kSharedBytesWithoutOptIn) {
      check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, from.shared_bytes));
    }
    if (from.cluster > kPortableCluster) {
      check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    }
    if (from.cluster > 1) {
      cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim.x = unsigned(from.cluster);
      cluster.val.clusterDim.y = 1;
      cluster.val.clusterDim.z = 1;
    }
    if (from.cooperative) {
      cudaLaunchAttribute& cooperative = attributes[config.numAttrs++];
      cooperative.id = cudaLaunchAttributeCooperative;
      cooperative.val.cooperative = 1;
    }
    config.gridDim = dim3(from.grid.x, from.grid.y, from.grid.z);
    config.blockDim = dim3(from.block.x, from.block.y, from.block.z);
    config.dynamicSmemBytes = size_t(from.shared_bytes);
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = attributes;
  }
  Native(const Native&) = delete;
};

inline int attribute(cudaDeviceAttr which) {
  int device = 0, value = 0;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&value, which, device));
  return value;
}

inline int occupancy(const LaunchConfig& config, const void* function) {
  if (config.shared_bytes > attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)) return 0;
  const Native native(config, nullptr, function);
  int count = 0;
  if (config.cluster > 1) {
    const cudaError_t error = cudaOccupancyMaxActiveClusters(&count, function, &native.config);
    if (error == cudaErrorInvalidClusterSize || error == cudaErrorLaunchOutOfResources) {
      cudaGetLastError();
      return 0;
    }
    check(error);
    return count;
  }
  const int threads = int(config.block.x * config.block.y * config.block.z);
  check(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, function, threads, size_t(config.shared_bytes)));
  return count * attribute(cudaDevAttrMultiProcessorCount);
}

// Asking takes longer than a launch, and the answer stays.
struct Occupancies {
  using Key = std::tuple<int, const void*, int, int>;  // device, kernel, cluster, shared bytes
  std::mutex mutex;
  std::map<Key, int> known;
};
inline Occupancies& occupancies() {
  static Occupancies all;
  return all;
}

}  // namespace launch_detail

// Of the current device, as __CUDA_ARCH__ counts: 900 for sm_90.
inline int device_arch() {
  return 100 * launch_detail::attribute(cudaDevAttrComputeCapabilityMajor) +
         10 * launch_detail::attribute(cudaDevAttrComputeCapabilityMinor);
}

// How many clusters of such a launch (blocks, where a cluster is one) the current device can hold at once; 0
// where it has not the shared memory or the multiprocessors for one.
template <class... P>
int max_active_clusters(const LaunchConfig& config, void (*kernel)(P...)) {
  using namespace launch_detail;
  const void* function = reinterpret_cast<const void*>(kernel);
  int device = 0;
  check(cudaGetDevice(&device));
  const Occupancies::Key key{device, function, config.cluster, config.shared_bytes};
  const std::lock_guard<std::mutex> lock(occupancies().mutex);
  const auto found = occupancies().known.find(key);
  if (found != occupancies().known.end()) return found->second;
  return occupancies().known[key] = occupancy(config, function);
}

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
  const launch_detail::Native native(config, stream, function);

  std::tuple<std::decay_t<P>...> values(std::forward<A>(arguments)...);
  std::apply(
      [&](auto&... value) {
        // A zero-sized array is no C++, and a kernel may have no parameters.
        void* pointers[sizeof...(P) + 1] = {const_cast<void*>(static_cast<const void*>(&value))..., nullptr};
        check(cudaLaunchKernelExC(&native.config, function, pointers));
      },
      values);
}

}  // namespace cuda
}  // namespace rnnfused
