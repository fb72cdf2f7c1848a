// Where the kernels of the checks run: what their host code needs of a device, and of the emulation. One
// file with two halves, because the checks themselves must not know which it is.
#pragma once

#include <cuda/launch.cuh>
#include <vector>

#if defined(__CUDACC__)

namespace rnnfused {
namespace cuda {

// An array that kernels read and write.
template <class T>
class Buffer {
 public:
  explicit Buffer(const std::vector<T>& values) : count_(values.size()) {
    launch_detail::check(cudaMalloc(&data_, count_ * sizeof(T)));
    launch_detail::check(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice));
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() const { return static_cast<T*>(data_); }
  // When the kernels have ended; throws where one failed.
  std::vector<T> read() const {
    std::vector<T> values(count_);
    launch_detail::check(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
  }

 private:
  size_t count_;
  void* data_ = nullptr;
};

// Waits for the kernels; throws where one failed.
inline void finish() { launch_detail::check(cudaDeviceSynchronize()); }

// Starts what the first call would else start within a check's time; throws where there is no device.
inline void start_device() { launch_detail::check(cudaFree(nullptr)); }

// Whether a fault has ended what this process can do with the device.
inline bool device_is_lost() { return cudaDeviceSynchronize() != cudaSuccess; }

// More than a check takes: what takes longer hangs.
constexpr unsigned kCheckSeconds = 4;

}  // namespace cuda
}  // namespace rnnfused

#else

#include <algorithm>

#include "emulation/global.h"

namespace rnnfused {
namespace cuda {

template <class T>
class Buffer {
 public:
  explicit Buffer(const std::vector<T>& values) : memory_(values.size()) {
    std::copy(values.begin(), values.end(), memory_.begin());
  }
  T* data() const { return memory_.data(); }
  std::vector<T> read() const { return std::vector<T>(memory_.begin(), memory_.end()); }

 private:
  emulation::GlobalBuffer<T> memory_;
};

inline void finish() {}
inline void start_device() {}
inline bool device_is_lost() { return false; }
constexpr unsigned kCheckSeconds = 60;

}  // namespace cuda
}  // namespace rnnfused

#endif
