// The grid's barrier, flags and counters in global memory.
#pragma once

#include <exception>

#include "checks.h"

namespace rnnfused {
namespace cuda {
namespace {

constexpr unsigned kBlocks = 12;  // of a cooperative launch

LaunchConfig cooperative() {
  LaunchConfig config = blocks_of(kBlocks, kLanes);
  config.cooperative = true;
  return config;
}

// Every lane of every block reads what the other end of the grid wrote.
__global__ void __launch_bounds__(kLanes) turn_grid(Global<uint32_t> words, uint32_t* out, unsigned rounds) {
  const unsigned all = gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
  for (unsigned round = 0; round < rounds; ++round) {
    const Global<uint32_t> now = words + round % 2 * all;
    now[i] = mix(round * all + i);
    grid_sync();
    const uint32_t word = now[all - 1 - i];
    out[round * all + i] = word;
  }
}

std::string check_grid() {
  constexpr unsigned kRounds = 5, kAll = kBlocks * kLanes;
  const Buffer<uint32_t> words(std::vector<uint32_t>(2 * kAll, 7)),
      out(std::vector<uint32_t>(kRounds * kAll, 7));
  launch(cooperative(), nullptr, turn_grid, words.data(), out.data(), kRounds);
  std::vector<uint32_t> expected;
  for (unsigned round = 0; round < kRounds; ++round)
    for (unsigned i = kAll; i-- > 0;) expected.push_back(mix(round * kAll + i));
  return compare(out.read(), expected);
}

enum class Order { acquire_release, fences };

// A chain of blocks: each waits for its flag, reads what the block before has written behind it, adds to
// that, and raises the next one's.
template <class Flag, Order O>
__global__ void __launch_bounds__(kLanes) pass_on(Global<uint64_t> data, Global<Flag> flags) {
  const unsigned block = blockIdx.x;
  if (threadIdx.x != 0) return;
  uint64_t value = 1;
  if (block > 0) {
    poll_until([&] {
      const Flag seen =
          O == Order::acquire_release ? load_acquire(flags + block) : load_relaxed(flags + block);
      return seen == Flag(block);
    });
    if (O == Order::fences) fence_gpu();
    value = data[block - 1];
  }
  data[block] = 3 * value + block;
  if (block + 1 == gridDim.x) return;
  if (O == Order::fences) {
    fence_gpu();
    store_relaxed(flags + (block + 1), Flag(block + 1));
  } else {
    store_release(flags + (block + 1), Flag(block + 1));
  }
}

template <class Flag, Order O>
std::string check_pass_on() {
  std::vector<uint64_t> expected;
  for (unsigned block = 0; block < kBlocks; ++block)
    expected.push_back(3 * (block ? expected.back() : 1) + block);
  for (int repetition = 0; repetition < 20; ++repetition) {
    const Buffer<uint64_t> data(std::vector<uint64_t>(kBlocks, 7));
    const Buffer<Flag> flags(std::vector<Flag>(kBlocks, Flag(0)));
    launch(cooperative(), nullptr, pass_on<Flag, O>, data.data(), flags.data());
    const std::string found = compare(data.read(), expected);
    if (!found.empty()) return found;
  }
  return "";
}

// Every thread draws numbers; where `ordered` is set the counter is a barrier of the grid, too.
template <bool Ordered>
__global__ void __launch_bounds__(kLanes)
    draw_numbers(Global<uint32_t> counter, Global<uint32_t> words, uint32_t* out, uint32_t* seen) {
  const unsigned all = gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
  words[i] = mix(i);
  uint32_t number;
  if constexpr (Ordered) {
    number = atomic_add(counter, 1);
    poll_until([&] { return load_acquire(counter) == all; });
    const uint32_t word = words[all - 1 - i];
    seen[i] = word;
  } else {
    number = atomic_add_relaxed(counter, 1);
    seen[i] = mix(all - 1 - i);
  }
  out[i] = number;
}

template <bool Ordered>
std::string check_atomic_add() {
  constexpr unsigned kAll = kBlocks * kLanes;
  const Buffer<uint32_t> counter(std::vector<uint32_t>(1, 0)), words(std::vector<uint32_t>(kAll, 7));
  const Buffer<uint32_t> out(std::vector<uint32_t>(kAll, 7)), seen(std::vector<uint32_t>(kAll, 7));
  launch(cooperative(), nullptr, draw_numbers<Ordered>, counter.data(), words.data(), out.data(),
         seen.data());
  std::vector<uint32_t> drawn(kAll, 0), once(kAll, 1), expected;
  for (const uint32_t number : out.read())
    if (number < kAll) ++drawn[number];
  for (unsigned i = kAll; i-- > 0;) expected.push_back(mix(i));
  return first_of(first_of(compare(counter.read(), {kAll}), compare(drawn, once)),
                  compare(seen.read(), expected));
}

__global__ void __launch_bounds__(kLanes) fall_into_trap(uint32_t* out) {
  if (threadIdx.x == kLanes - 1) trap();
  out[threadIdx.x] = 1;
}

std::string check_trap() {
  const Buffer<uint32_t> out(std::vector<uint32_t>(kLanes, 0));
  try {
    launch(blocks_of(1, kLanes), nullptr, fall_into_trap, out.data());
    finish();
  } catch (const std::exception&) {
    return "";
  }
  return "expected the launch to fail, got no error";
}

}  // namespace

inline WrapperChecks grid_checks() {
  return {
      {"grid_sync", "", 80, check_grid},
      {"load_acquire", "32 bits", 80, check_pass_on<uint32_t, Order::acquire_release>},
      {"load_acquire", "64 bits", 80, check_pass_on<uint64_t, Order::acquire_release>},
      {"store_release", "32 bits", 80, check_pass_on<uint32_t, Order::acquire_release>},
      {"store_release", "64 bits", 80, check_pass_on<uint64_t, Order::acquire_release>},
      {"load_relaxed", "32 bits", 80, check_pass_on<uint32_t, Order::fences>},
      {"load_relaxed", "64 bits", 80, check_pass_on<uint64_t, Order::fences>},
      {"store_relaxed", "32 bits", 80, check_pass_on<uint32_t, Order::fences>},
      {"store_relaxed", "64 bits", 80, check_pass_on<uint64_t, Order::fences>},
      {"fence_gpu", "", 80, check_pass_on<uint32_t, Order::fences>},
      {"poll_until", "", 80, check_pass_on<uint32_t, Order::acquire_release>},
      {"atomic_add", "", 80, check_atomic_add<true>},
      {"atomic_add_relaxed", "", 80, check_atomic_add<false>},
      {"trap", "", 80, check_trap},
  };
}

}  // namespace cuda
}  // namespace rnnfused
