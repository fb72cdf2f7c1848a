// Compiled once per type and way: RNNFUSED_TYPE is float, Half or BFloat16, RNNFUSED_WAY Forward or Backward.
#include <stdexcept>
#include <string>

#include "cuda/launch.cuh"
#include "cuda/resident_backward.cuh"
#include "cuda/resident_forward.cuh"

namespace rnnfused::cuda {
namespace {

using T = RNNFUSED_TYPE;

template <class Cell>
constexpr ResidentKernels kKernels = resident_kernels(kUnitRows<Cell>, TypeOf<T>::value);

// A kernel of the list, and the shared memory that it takes with so many blocks.
template <class Cell, int K>
struct Forward {
  using Arguments = ResidentForward<Cell, T>;
  static constexpr ResidentKernel kIs = kKernels<Cell>.all[K];
  static constexpr auto kernel =
      &resident_forward<Cell, T, kIs.depth, kIs.row_tiles, kIs.eights, kIs.exchange, kIs.warps,
                        kIs.held_forward, kKernels<Cell>.products(K)>;
  static constexpr size_t bytes(int) {
    return ForwardSizes<Cell, T, kIs.depth, kIs.row_tiles, kIs.eights, kIs.exchange, kIs.warps,
                        kIs.held_forward, kKernels<Cell>.products(K)>::bytes;
  }
};
template <class Cell, int K>
struct Backward {
  using Arguments = ResidentBackward<Cell, T>;
  static constexpr ResidentKernel kIs = kKernels<Cell>.all[K];
  static constexpr auto kernel =
      &resident_backward<Cell, T, kIs.depth, kIs.row_tiles, kIs.eights, kIs.exchange, kIs.warps,
                         kIs.held_backward, kKernels<Cell>.products(K)>;
  static constexpr size_t bytes(int blocks) {
    return BackwardSizes<Cell, T, kIs.depth, kIs.row_tiles, kIs.eights, kIs.exchange, kIs.warps,
                         kIs.held_backward, kKernels<Cell>.products(K)>::bytes(blocks);
  }
};

// body(kernel, its launch) for the one that was chosen.
template <class Cell, int K = 0, class Body>
void with_kernel(const Resident& chosen, Index directions, Body body) {
  if constexpr (K < kKernels<Cell>.count) {
    if (chosen.kernel != K) return with_kernel<Cell, K + 1>(chosen, directions, body);
    using Kernel = RNNFUSED_WAY<Cell, K>;
    LaunchConfig config;
    config.cluster = chosen.cluster;
    config.grid = {unsigned(chosen.slices * chosen.cluster), unsigned(directions), 1};
    config.block = {unsigned(Kernel::kIs.warps * 32), 1, 1};
    config.shared_bytes = int(Kernel::bytes(chosen.cluster));
    body(Kernel::kernel, config);
  } else {
    throw std::logic_error("resident kernels: there is none of number " + std::to_string(chosen.kernel));
  }
}

}  // namespace

template <class Cell>
using Arguments = typename RNNFUSED_WAY<Cell, 0>::Arguments;

#define RNNFUSED_RESIDENT(name, Cell)                                                                  \
  template <>                                                                                          \
  int ResidentLaunch<Cell, Arguments<Cell>>::active(const Resident& chosen) {                          \
    int count = 0;                                                                                     \
    with_kernel<Cell>(chosen, 1, [&](auto kernel, const LaunchConfig& config) {                        \
      count = max_active_clusters(config, kernel);                                                     \
    });                                                                                                \
    return count;                                                                                      \
  }                                                                                                    \
  template <>                                                                                          \
  void ResidentLaunch<Cell, Arguments<Cell>>::start(const Resident& chosen,                            \
                                                    const Arguments<Cell>& arguments, Stream stream) { \
    with_kernel<Cell>(chosen, arguments.directions, [&](auto kernel, const LaunchConfig& config) {     \
      launch(config, stream, kernel, arguments);                                                       \
    });                                                                                                \
  }
RNNFUSED_CELLS(RNNFUSED_RESIDENT)
#undef RNNFUSED_RESIDENT

}  // namespace rnnfused::cuda
