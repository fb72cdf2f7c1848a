// The host's side of csrc/cuda/launch.cuh: runs the launch to its end, and throws emulation::Fault.
#pragma once

#include <cstdint>
#include <cstring>
#include <tuple>
#include <utility>

namespace rnnfused {
namespace cuda {

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

using Stream = void*;

struct LaunchConfig {
  Dim3 grid, block;
  int shared_bytes = 0;
  int cluster = 1;
  bool cooperative = false;
};

}  // namespace cuda

namespace emulation {

void run_launch(const cuda::LaunchConfig& config, void (*body)(void*), void* arguments);

}  // namespace emulation

namespace cuda {

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
