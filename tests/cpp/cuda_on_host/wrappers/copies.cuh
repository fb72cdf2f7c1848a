// Asynchronous copies into a block.
#pragma once

#include "checks.h"

namespace rnnfused {
namespace cuda {
namespace {

// Two groups of a copy a lane; each lane reads its own of the first, then all lanes read those of both.
template <int Bytes>
__global__ void __launch_bounds__(kLanes) copy_groups(const uint32_t* in, uint32_t* own, uint32_t* out) {
  constexpr unsigned kWords = Bytes / 4;
  const unsigned i = threadIdx.x;
  const Shared<uint32_t> words = shared_memory<uint32_t>(0);  // [2, kLanes, kWords]
  cp_async<Bytes>(words + i * kWords, in + i * kWords);
  cp_async_commit();
  cp_async<Bytes>(words + (kLanes + i) * kWords, in + (kLanes + i) * kWords);
  cp_async_commit();
  cp_async_wait<1>();
  for (unsigned k = 0; k < kWords; ++k) {
    const uint32_t word = words[i * kWords + k];
    own[i * kWords + k] = word;
  }
  cp_async_wait<0>();
  block_sync();
  for (unsigned k = i; k < 2 * kLanes * kWords; k += kLanes) {
    const uint32_t word = words[2 * kLanes * kWords - 1 - k];
    out[k] = word;
  }
}

template <int Bytes>
std::string check_copies() {
  constexpr unsigned kCount = 2 * kLanes * Bytes / 4;
  std::vector<uint32_t> values, reversed;
  for (unsigned i = 0; i < kCount; ++i) values.push_back(mix(i));
  for (unsigned i = kCount; i-- > 0;) reversed.push_back(mix(i));
  const Buffer<uint32_t> in(values), own(std::vector<uint32_t>(kCount / 2, 7)),
      out(std::vector<uint32_t>(kCount, 7));
  launch(blocks_of(1, kLanes, kCount * 4), nullptr, copy_groups<Bytes>, in.data(), own.data(), out.data());
  values.resize(kCount / 2);
  return first_of(compare(own.read(), values), compare(out.read(), reversed));
}

// Never committed. Lanes copy 0, 1, ... bytes, the rest is zero.
template <int Bytes>
__global__ void __launch_bounds__(kLanes) copy_some(const uint32_t* in, uint32_t* out) {
  constexpr unsigned kWords = Bytes / 4;
  const unsigned i = threadIdx.x;
  const Shared<uint32_t> words = shared_memory<uint32_t>(0);  // [kLanes, kWords]
  for (unsigned k = 0; k < kWords; ++k) words[i * kWords + k] = 0xffffffffu;
  cp_async_zfill<Bytes>(words + i * kWords, in + i * kWords, i % (Bytes + 1));
  cp_async_wait_all();
  block_sync();
  for (unsigned k = i; k < kLanes * kWords; k += kLanes) {
    const uint32_t word = words[k];
    out[k] = word;
  }
}

template <int Bytes>
std::string check_zfill() {
  constexpr unsigned kCount = kLanes * Bytes / 4;
  std::vector<uint32_t> values;
  for (unsigned i = 0; i < kCount; ++i) values.push_back(mix(i) | 0x01010101u);  // no byte is zero
  std::vector<uint32_t> expected(kCount, 0);
  for (unsigned i = 0; i < kLanes; ++i)
    std::memcpy(&expected[i * Bytes / 4], &values[i * Bytes / 4], i % (Bytes + 1));
  const Buffer<uint32_t> in(values), out(std::vector<uint32_t>(kCount, 7));
  launch(blocks_of(1, kLanes, kCount * 4), nullptr, copy_some<Bytes>, in.data(), out.data());
  return compare(out.read(), expected);
}

}  // namespace

inline WrapperChecks copy_checks() {
  return {
      {"cp_async", "4 bytes", 80, check_copies<4>},      {"cp_async", "8 bytes", 80, check_copies<8>},
      {"cp_async", "16 bytes", 80, check_copies<16>},    {"cp_async_commit", "", 80, check_copies<16>},
      {"cp_async_wait", "", 80, check_copies<16>},       {"cp_async_zfill", "4 bytes", 80, check_zfill<4>},
      {"cp_async_zfill", "8 bytes", 80, check_zfill<8>}, {"cp_async_zfill", "16 bytes", 80, check_zfill<16>},
      {"cp_async_wait_all", "", 80, check_zfill<16>},
  };
}

}  // namespace cuda
}  // namespace rnnfused
