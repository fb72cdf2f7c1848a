// Tensor cores.
#pragma once

#include <type_traits>

#include "checks.h"

namespace rnnfused {
namespace cuda {
namespace {

// Layouts are written down from the PTX ISA's formulas for an element's row and column,
// element by element; the emulator computes them register by register.

constexpr unsigned kPitch = 24;  // elements between rows

template <int N>
__global__ void __launch_bounds__(kLanes) load_matrices(uint32_t* out) {
  const unsigned i = threadIdx.x;
  const Shared<Half> rows = shared_memory<Half>(0);  // N matrices of 8 rows of 8
  if (i < N * 8)
    for (unsigned column = 0; column < 8; ++column)
      rows[i * kPitch + column] = Half{uint16_t(i * 256 + column)};
  warp_sync();
  uint32_t fragments[N];
  ldmatrix(fragments, rows + i % (N * 8) * kPitch);
  for (unsigned k = 0; k < N; ++k) out[i * N + k] = fragments[k];
}

template <int N>
std::string check_load_matrices() {
  std::vector<uint32_t> expected;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    for (unsigned matrix = 0; matrix < N; ++matrix) {
      // Row r of a matrix goes to lanes 4 r ... 4 r + 3, two elements each.
      const unsigned first = (matrix * 8 + lane / 4) * 256 + lane % 4 * 2;
      expected.push_back(first | (first + 1) << 16);
    }
  }
  const Buffer<uint32_t> out(std::vector<uint32_t>(expected.size(), 7));
  launch(blocks_of(1, kLanes, N * 8 * kPitch * sizeof(Half)), nullptr, load_matrices<N>, out.data());
  return compare(out.read(), expected);
}

struct Place {
  unsigned row, column;
};
Place a16(unsigned lane, unsigned i) {
  const unsigned group = lane >> 2, member = lane % 4;
  const bool upper = i < 2 || (4 <= i && i < 6);
  return {upper ? group : group + 8, i < 4 ? member * 2 + (i & 1) : member * 2 + (i & 1) + 8};
}
Place b16(unsigned lane, unsigned i) {
  const unsigned group = lane >> 2, member = lane % 4;
  return {i < 2 ? member * 2 + (i & 1) : member * 2 + (i & 1) + 8, group};
}
Place a32(unsigned lane, unsigned i) {
  const unsigned group = lane >> 2, member = lane % 4;
  return {i == 0 || i == 2 ? group : group + 8, i < 2 ? member : member + 4};
}
Place b32(unsigned lane, unsigned i) {
  const unsigned group = lane >> 2, member = lane % 4;
  return {i == 0 ? member : member + 4, group};
}
Place c32(unsigned lane, unsigned i) {
  const unsigned group = lane >> 2, member = lane % 4;
  return {i < 2 ? group : group + 8, member * 2 + (i & 1)};
}

// What a lane holds, one lane after another, of `count` products. T is float for TF32.
template <class T>
__global__ void __launch_bounds__(kLanes)
    multiply(const uint32_t* a, const uint32_t* b, const float* c, float* out, unsigned count) {
  for (unsigned k = 0; k < count; ++k) {
    const unsigned i = k * kLanes + threadIdx.x;
    const uint32_t af[4] = {a[4 * i], a[4 * i + 1], a[4 * i + 2], a[4 * i + 3]};
    const uint32_t bf[2] = {b[2 * i], b[2 * i + 1]};
    float d[4] = {c[4 * i], c[4 * i + 1], c[4 * i + 2], c[4 * i + 3]};
    if constexpr (std::is_same<T, float>::value) {
      mma_sync_tf32(d, af, bf);
    } else {
      mma_sync<T>(d, af, bf);
    }
    for (unsigned j = 0; j < 4; ++j) out[4 * i + j] = d[j];
  }
}

// An integer below 256, which every format has, as an operand's bits.
template <class T>
uint32_t operand(unsigned value) {
  const auto number = float(value);
  const auto bits = bits_as<uint32_t>(number);
  if constexpr (std::is_same<T, Half>::value) {
    if (value == 0) return 0;
    return ((bits >> 23) - 127 + 15) << 10 | (bits >> 13 & 0x3ff);
  } else {
    return std::is_same<T, BFloat16>::value ? bits >> 16 : bits;
  }
}

// A product for every element of one operand, which is the only one of it that is not zero, and one in which
// all are: what is at a wrong place, or twice, changes the result.
template <class T>
std::string check_multiply() {
  constexpr bool kWords = std::is_same<T, float>::value;
  constexpr unsigned kDepth = kWords ? 8 : 16, kInRegister = kWords ? 1 : 2;
  constexpr unsigned kOfA = 16 * kDepth, kOfB = kDepth * 8, kCount = kOfA + kOfB + 1;
  std::vector<uint32_t> af(kCount * kLanes * 4, 0), bf(kCount * kLanes * 2, 0);
  std::vector<float> cf(kCount * kLanes * 4), expected;
  for (unsigned product = 0; product < kCount; ++product) {
    unsigned a[16][16] = {}, b[16][8] = {}, c[16][8];
    for (unsigned i = 0; i < 16; ++i)
      for (unsigned k = 0; k < kDepth; ++k)
        if (product >= kOfA || product == i * kDepth + k) a[i][k] = (i * kDepth + k) % 251 + 1;
    for (unsigned k = 0; k < kDepth; ++k)
      for (unsigned j = 0; j < 8; ++j)
        if (product < kOfA || product == kCount - 1 || product - kOfA == k * 8 + j) b[k][j] = k * 8 + j + 1;
    for (unsigned i = 0; i < 16; ++i)
      for (unsigned j = 0; j < 8; ++j) c[i][j] = mix(product * 128 + i * 8 + j) % 1000;
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      const unsigned at = product * kLanes + lane;
      for (unsigned i = 0; i < 4 * kInRegister; ++i) {
        const Place place = kWords ? a32(lane, i) : a16(lane, i);
        af[4 * at + i / kInRegister] |= operand<T>(a[place.row][place.column]) << 16 * (i % kInRegister);
      }
      for (unsigned i = 0; i < 2 * kInRegister; ++i) {
        const Place place = kWords ? b32(lane, i) : b16(lane, i);
        bf[2 * at + i / kInRegister] |= operand<T>(b[place.row][place.column]) << 16 * (i % kInRegister);
      }
      for (unsigned i = 0; i < 4; ++i) {
        const Place place = c32(lane, i);
        unsigned sum = c[place.row][place.column];
        cf[4 * at + i] = float(sum);
        for (unsigned k = 0; k < kDepth; ++k) sum += a[place.row][k] * b[k][place.column];
        expected.push_back(float(sum));  // integers below 2^24: exact in any order
      }
    }
  }
  const Buffer<uint32_t> a(af), b(bf);
  const Buffer<float> c(cf), out(std::vector<float>(expected.size(), -1));
  launch(blocks_of(1, kLanes), nullptr, multiply<T>, a.data(), b.data(), c.data(), out.data(), kCount);
  return compare(out.read(), expected);
}

}  // namespace

inline WrapperChecks matrix_checks() {
  return {
      {"ldmatrix", "1", 80, check_load_matrices<1>},
      {"ldmatrix", "2", 80, check_load_matrices<2>},
      {"ldmatrix", "4", 80, check_load_matrices<4>},
      {"mma_sync", "float16", 80, check_multiply<Half>},
      {"mma_sync", "bfloat16", 80, check_multiply<BFloat16>},
      {"mma_sync_tf32", "", 80, check_multiply<float>},
  };
}

}  // namespace cuda
}  // namespace rnnfused
