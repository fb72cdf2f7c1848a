// How many clusters of blocks a device runs at once: it must find them side by side in one of its partitions,
// which differ in size from device to device. A file of its own, since the emulation has no occupancy.
#include <cuda/launch.cuh>
#include <cuda/ptx.cuh>

#include "guarded.h"

namespace rnnfused {
namespace cuda {
namespace {

constexpr int kOccupancyThreads = 256;
constexpr int kKept = 200;

// Keeps so much in registers that a multiprocessor has room for one block, as kernels do that keep weights
// there.
__global__ void __launch_bounds__(kOccupancyThreads, 1) keep(float* memory, int rounds) {
  float* const own = memory + threadIdx.x;
  float kept[kKept];
  RNNFUSED_UNROLL
  for (int i = 0; i < kKept; ++i) kept[i] = own[i * kOccupancyThreads];
  for (int round = 0; round < rounds; ++round) {
    RNNFUSED_UNROLL
    for (int i = 0; i < kKept; ++i) kept[i] = kept[i] * kept[(i + 1) % kKept] + kept[(i + 7) % kKept];
  }
  RNNFUSED_UNROLL
  for (int i = 0; i < kKept; ++i) own[i * kOccupancyThreads] = kept[i];
}

void max_clusters(int cluster, int shared_bytes, int* clusters, int* registers) {
  using launch_detail::check;
  const void* function = reinterpret_cast<const void*>(keep);
  cudaFuncAttributes of_kernel;
  check(cudaFuncGetAttributes(&of_kernel, function));
  *registers = of_kernel.numRegs;
  check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  check(cudaFuncSetAttribute(function, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  cudaLaunchAttribute size;
  size.id = cudaLaunchAttributeClusterDimension;
  size.val.clusterDim.x = unsigned(cluster);
  size.val.clusterDim.y = 1;
  size.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(cluster));
  config.blockDim = dim3(kOccupancyThreads);
  config.dynamicSmemBytes = size_t(shared_bytes);
  config.attrs = &size;
  config.numAttrs = 1;
  check(cudaOccupancyMaxActiveClusters(clusters, function, &config));
}

}  // namespace
}  // namespace cuda
}  // namespace rnnfused

// 0, or 1 with a text in limits_error().
extern "C" int limits_max_clusters(int cluster, int shared_bytes, int* clusters, int* registers) {
  namespace gpu = rnnfused::cuda;
  return gpu::guarded([&] { gpu::max_clusters(cluster, shared_bytes, clusters, registers); });
}
