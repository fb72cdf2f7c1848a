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

inline int current_device() {
  int device = 0;
  check(cudaGetDevice(&device));
  return device;
}

// What kernels may take beyond the ordinary.
struct Allowed {
  int shared_bytes = kSharedBytesWithoutOptIn, cluster = kPortableCluster;
};

// What was asked of each device and kernel: the answers stay, and asking takes longer than a launch.
struct Known {
  std::mutex mutex;
  std::map<std::tuple<int, const void*, int, int>, int> clusters;  // by device, kernel, cluster, shared bytes
  std::map<std::pair<int, const void*>, Allowed> allowed;
};
inline Known& known() {
  static Known all;
  return all;
}

// Allows the kernel what the launch needs. It belongs to the kernel, not to a launch, and must not become
// less while another thread launches it.
inline cudaError_t allow(const LaunchConfig& config, const void* function) {
  if (config.shared_bytes <= kSharedBytesWithoutOptIn && config.cluster <= kPortableCluster)
    return cudaSuccess;
  const std::lock_guard<std::mutex> lock(known().mutex);
  Allowed& allowed = known().allowed[{current_device(), function}];
  const auto raise = [&](int Allowed::* most, int wanted, cudaFuncAttribute attribute, int value) {
    if (wanted <= allowed.*most) return cudaSuccess;
    const cudaError_t error = cudaFuncSetAttribute(function, attribute, value);
    if (error == cudaSuccess) allowed.*most = wanted;
    return error;
  };
  const cudaError_t error = raise(&Allowed::shared_bytes, config.shared_bytes,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, config.shared_bytes);
  if (error != cudaSuccess) return error;
  return raise(&Allowed::cluster, config.cluster, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

// A launch as the runtime takes it.
struct Native {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config = {};

  Native(const LaunchConfig& from, Stream stream) {
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
  int value = 0;
  check(cudaDeviceGetAttribute(&value, which, current_device()));
  return value;
}

// Whether the machine code that would run on the device was compiled for one with clusters: code made of the
// PTX of an older architecture was not.
inline bool compiled_for_clusters(const void* function) {
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, function));
  return attributes.ptxVersion >= 90;
}

inline int occupancy(const LaunchConfig& config, const void* function) {
  if (config.shared_bytes > attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)) return 0;
  int count = 0;
  if (config.cluster == 1) {
    check(allow(config, function));
    const int threads = int(config.block.x * config.block.y * config.block.z);
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, function, threads,
                                                        size_t(config.shared_bytes)));
    return count * attribute(cudaDevAttrMultiProcessorCount);
  }
  if (!compiled_for_clusters(function)) return 0;
  // A device that has no such clusters answers by an error.
  const Native native(config, nullptr);
  cudaError_t error = allow(config, function);
  if (error == cudaSuccess) error = cudaOccupancyMaxActiveClusters(&count, function, &native.config);
  switch (error) {
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidClusterSize:
    case cudaErrorLaunchOutOfResources:
    case cudaErrorNotSupported:
      cudaGetLastError();
      return 0;
    default:
      check(error);
      return count;
  }
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
  const std::tuple<int, const void*, int, int> key{current_device(), function, config.cluster,
                                                   config.shared_bytes};
  {
    const std::lock_guard<std::mutex> lock(known().mutex);
    const auto found = known().clusters.find(key);
    if (found != known().clusters.end()) return found->second;
  }
  const int count = occupancy(config, function);
  const std::lock_guard<std::mutex> lock(known().mutex);
  return known().clusters[key] = count;
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
  check(launch_detail::allow(config, function));
  const launch_detail::Native native(config, stream);

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
