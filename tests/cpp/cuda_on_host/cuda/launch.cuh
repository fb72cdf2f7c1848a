// The host's side of csrc/cuda/launch.cuh: runs the launch to its end, and throws emulation::Fault.
#pragma once

#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>

#include "cuda/launch.h"
#include "emulation/schedule.h"

namespace rnnfused {
namespace emulation {

void run_launch(const cuda::LaunchConfig& config, void (*body)(void*), void* arguments);

}  // namespace emulation

namespace cuda {

// What the schedule says that a device is.
inline int device_arch() { return emulation::schedule().arch; }
template <class... P>
int max_active_clusters(const LaunchConfig&, void (*)(P...)) {
  return emulation::schedule().active_clusters;
}

template <class T>
void clear(T* data, int64_t count, Stream) {
  std::memset(static_cast<void*>(data), 0, size_t(count) * sizeof(T));
}

template <class... P, class... A>
void launch(const LaunchConfig& config, Stream, void (*kernel)(P...), A&&... arguments) {
  struct Call {
    void (*kernel)(P...);
    std::tuple<P...> arguments;
  } call = {kernel, std::tuple<P...>(std::forward<A>(arguments)...)};
  emulation::run_launch(
      config,
      [](void* opaque) {
        Call& made = *static_cast<Call*>(opaque);
        std::apply(made.kernel, made.arguments);
      },
      &call);
}

}  // namespace cuda
}  // namespace rnnfused
