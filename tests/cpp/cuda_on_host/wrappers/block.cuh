// A block's memory, barriers and warps.
#pragma once

#include "checks.h"

namespace rnnfused {
namespace cuda {
namespace {

// ---- Memory of a block, its barriers, and its warps

// Threads write words and read those of the other end, again and again: through one array, and as floats
// through another one behind it.
template <class Barrier>
__device__ __forceinline__ void turn_around(uint32_t* out, unsigned rounds, Barrier barrier) {
  const unsigned i = threadIdx.x, n = blockDim.x;
  const Shared<uint32_t> words = shared_memory<uint32_t>(0);
  const Shared<float> floats = shared_memory<float>(n * sizeof(uint32_t));
  for (unsigned round = 0; round < rounds; ++round) {
    words[i] = mix(round * n + i);
    floats[i] = float(round * n + i);
    barrier();
    const uint32_t word = words[n - 1 - i];
    const uint32_t number = shared_cast<uint32_t>(floats)[n - 1 - i];
    out[(round * 2 + 0) * n + i] = word;
    out[(round * 2 + 1) * n + i] = number;
    barrier();
  }
}

__global__ void __launch_bounds__(256) turn_blocks(uint32_t* out, unsigned rounds) {
  turn_around(out, rounds, [] { block_sync(); });
}
__global__ void __launch_bounds__(kLanes) turn_warps(uint32_t* out, unsigned rounds) {
  turn_around(out, rounds, [] { warp_sync(); });
}

std::string check_turn(void (*kernel)(uint32_t*, unsigned), unsigned threads) {
  constexpr unsigned kRounds = 5;
  const Buffer<uint32_t> out(std::vector<uint32_t>(kRounds * 2 * threads, 7));
  launch(blocks_of(1, threads, 2 * threads * sizeof(uint32_t)), nullptr, kernel, out.data(), kRounds);
  std::vector<uint32_t> expected;
  for (unsigned round = 0; round < kRounds; ++round) {
    for (unsigned i = threads; i-- > 0;) expected.push_back(mix(round * threads + i));
    for (unsigned i = threads; i-- > 0;) expected.push_back(bits_as<uint32_t>(float(round * threads + i)));
  }
  return compare(out.read(), expected);
}
std::string check_blocks() { return check_turn(turn_blocks, 256); }
std::string check_warps() { return check_turn(turn_warps, kLanes); }

__global__ void __launch_bounds__(kLanes)
    read_casts(Global<uint32_t> words, const float4* quads, float* out) {
  const unsigned i = threadIdx.x;
  const Global<float> floats = global_cast<float>(words);
  const float value = floats[i];
  out[i] = value;
  const float4 quad = *aligned<16>(quads + i);
  out[kLanes + i] = quad.x + 2 * quad.y + 4 * quad.z + 8 * quad.w;
}

std::string check_casts() {
  std::vector<uint32_t> words;
  std::vector<float4> quads;
  std::vector<float> expected;
  for (unsigned i = 0; i < kLanes; ++i) {
    const auto x = float(i);
    words.push_back(bits_as<uint32_t>(x + 0.5f));
    expected.push_back(x + 0.5f);
    quads.push_back(make_float4(x, x + 1, x + 2, x + 3));
  }
  for (unsigned i = 0; i < kLanes; ++i) expected.push_back(float(15 * i + 2 + 4 * 2 + 8 * 3));
  const Buffer<uint32_t> in(words);
  const Buffer<float4> wide(quads);
  const Buffer<float> out(std::vector<float>(2 * kLanes, -1));
  launch(blocks_of(1, kLanes), nullptr, read_casts, in.data(), wide.data(), out.data());
  return compare(out.read(), expected);
}

enum class Shuffle { exclusive_or, down };

// Every mask and distance.
template <class T, Shuffle S>
__global__ void __launch_bounds__(kLanes) shuffle_lanes(const T* in, T* out) {
  const unsigned i = threadIdx.x;
  const T own = in[i];
  for (unsigned k = 0; k < kLanes; ++k) {
    T other;
    if constexpr (S == Shuffle::exclusive_or) {
      other = shuffle_xor(own, k);
    } else {
      other = shuffle_down(own, k);
    }
    out[k * kLanes + i] = other;
  }
}

template <class T, Shuffle S>
std::string check_shuffle() {
  std::vector<T> values, expected;
  for (unsigned i = 0; i < kLanes; ++i) values.push_back(T(mix(i)));
  for (unsigned k = 0; k < kLanes; ++k) {
    for (unsigned i = 0; i < kLanes; ++i) {
      const unsigned down = i + k < kLanes ? i + k : i;
      expected.push_back(values[S == Shuffle::exclusive_or ? i ^ k : down]);
    }
  }
  const Buffer<T> in(values), out(std::vector<T>(kLanes * kLanes, T(7)));
  launch(blocks_of(1, kLanes), nullptr, shuffle_lanes<T, S>, in.data(), out.data());
  return compare(out.read(), expected);
}

// ---- mbarriers

constexpr unsigned kArrivals = 3;

// One thread arrives, and asks before and after whether the phase has ended.
__global__ void __launch_bounds__(1) count_arrivals(uint32_t* out, unsigned phases) {
  const Shared<Mbarrier> barrier = shared_memory<Mbarrier>(0);
  mbarrier_init(barrier, kArrivals);
  for (unsigned phase = 0; phase < phases; ++phase) {
    for (unsigned k = 0; k < kArrivals; ++k) {
      out[phase * (kArrivals + 1) + k] = mbarrier_test(barrier, phase) ? 1 : 0;
      mbarrier_arrive(barrier);
    }
    out[phase * (kArrivals + 1) + kArrivals] = mbarrier_test(barrier, phase) ? 1 : 0;
  }
}

std::string check_arrivals() {
  constexpr unsigned kPhases = 5;
  const Buffer<uint32_t> out(std::vector<uint32_t>(kPhases * (kArrivals + 1), 7));
  launch(blocks_of(1, 1, sizeof(Mbarrier)), nullptr, count_arrivals, out.data(), kPhases);
  std::vector<uint32_t> expected;
  for (unsigned phase = 0; phase < kPhases; ++phase)
    for (unsigned k = 0; k <= kArrivals; ++k) expected.push_back(k == kArrivals ? 1 : 0);
  return compare(out.read(), expected);
}

// The threads of a block pass words to the other end through two arrays, with an mbarrier for each round.
__global__ void __launch_bounds__(128) turn_by_mbarrier(uint32_t* out, unsigned rounds) {
  const unsigned i = threadIdx.x, n = blockDim.x;
  const Shared<uint32_t> words = shared_memory<uint32_t>(0);  // [2, n]
  const Shared<Mbarrier> barrier = shared_memory<Mbarrier>(2 * n * sizeof(uint32_t));
  if (i == 0) mbarrier_init(barrier, n);
  block_sync();
  for (unsigned round = 0; round < rounds; ++round) {
    words[round % 2 * n + i] = mix(round * n + i);
    mbarrier_arrive(barrier);
    mbarrier_wait(barrier, round);
    const uint32_t word = words[round % 2 * n + (n - 1 - i)];
    out[round * n + i] = word;
  }
}

std::string check_mbarrier_wait() {
  constexpr unsigned kRounds = 7, kThreads = 128;
  const Buffer<uint32_t> out(std::vector<uint32_t>(kRounds * kThreads, 7));
  launch(blocks_of(1, kThreads, 2 * kThreads * sizeof(uint32_t) + sizeof(Mbarrier)), nullptr,
         turn_by_mbarrier, out.data(), kRounds);
  std::vector<uint32_t> expected;
  for (unsigned round = 0; round < kRounds; ++round)
    for (unsigned i = kThreads; i-- > 0;) expected.push_back(mix(round * kThreads + i));
  return compare(out.read(), expected);
}

}  // namespace

inline WrapperChecks block_checks() {
  return {
      {"shared_memory", "", 80, check_blocks},
      {"shared_cast", "", 80, check_blocks},
      {"global_cast", "", 80, check_casts},
      {"aligned", "", 80, check_casts},
      {"block_sync", "", 80, check_blocks},
      {"warp_sync", "", 80, check_warps},
      {"shuffle_xor", "float", 80, check_shuffle<float, Shuffle::exclusive_or>},
      {"shuffle_xor", "uint32", 80, check_shuffle<uint32_t, Shuffle::exclusive_or>},
      {"shuffle_down", "float", 80, check_shuffle<float, Shuffle::down>},
      {"shuffle_down", "uint32", 80, check_shuffle<uint32_t, Shuffle::down>},
      {"mbarrier_init", "", 80, check_arrivals},
      {"mbarrier_arrive", "", 80, check_arrivals},
      {"mbarrier_test", "", 80, check_arrivals},
      {"mbarrier_wait", "", 80, check_mbarrier_wait},
  };
}

}  // namespace cuda
}  // namespace rnnfused
