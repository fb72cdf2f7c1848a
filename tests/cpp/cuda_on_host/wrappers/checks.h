// What each function of ptx.cuh must give: small kernels, and what plain code expects of them. The same
// sources run on a device (main.cu, compiled by nvcc) and in the emulation (test_wrappers.cpp). CUDA's
// headers stand in angle brackets: in quotes some would find the emulation, which lies near these files,
// under nvcc as well.
#pragma once

#include <cstdio>
#include <cstring>
#include <cuda/launch.cuh>
#include <cuda/ptx.cuh>
#include <limits>
#include <string>
#include <vector>

#include "device.h"

namespace rnnfused {
namespace cuda {

struct WrapperCheck {
  const char* wrapper;   // its name in ptx.cuh
  const char* what;      // of it: a type, a form
  int arch;              // from which on devices have it: 80 or 90
  std::string (*run)();  // empty, or the first difference in words; throws where a kernel can not run
};

using WrapperChecks = std::vector<WrapperCheck>;

constexpr unsigned kLanes = 32;

template <class To, class From>
To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// As 32-bit words.
template <class T>
std::string show(const T& value) {
  std::string text;
  unsigned char bytes[sizeof(T)];
  std::memcpy(bytes, &value, sizeof(T));
  for (size_t i = sizeof(T); i-- > 0;) {
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02x", bytes[i]);
    text += digits;
    if (i % 4 == 0 && i > 0) text += '_';
  }
  return "0x" + text;
}
inline std::string show(float value) {
  char text[64];
  std::snprintf(text, sizeof text, "%.9g (0x%08x)", double(value), bits_as<uint32_t>(value));
  return text;
}

template <class T>
std::string difference(size_t i, const T& expected, const T& got) {
  return "element " + std::to_string(i) + ": expected " + show(expected) + ", got " + show(got);
}

// Bit for bit.
template <class T>
std::string compare(const std::vector<T>& got, const std::vector<T>& expected) {
  for (size_t i = 0; i < expected.size(); ++i)
    if (std::memcmp(&got[i], &expected[i], sizeof(T)) != 0) return difference(i, expected[i], got[i]);
  return "";
}

inline std::string first_of(const std::string& one, const std::string& other) {
  return one.empty() ? other : one;
}

inline LaunchConfig blocks_of(unsigned blocks, unsigned threads, size_t shared_bytes = 0) {
  LaunchConfig config;
  config.grid.x = blocks;
  config.block.x = threads;
  config.shared_bytes = int(shared_bytes);
  return config;
}

// Different for every index, and every bit of it.
__host__ __device__ inline uint32_t mix(uint32_t index) {
  uint32_t x = (index + 1) * 0x9e3779b9u;
  x = (x ^ x >> 16) * 0x85ebca6bu;
  return x ^ x >> 13;
}

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

}  // namespace cuda
}  // namespace rnnfused
