// What it costs blocks to meet and to exchange data, and what a kernel costs to start: the measure that the
// recurrent kernels are held against. bench/gpu/programs.py builds this with nvcc, or against the emulation
// of tests/cpp/cuda_on_host, and loads it. In angle brackets: which of the two is the include path's choice.
#include <cuda/launch.cuh>
#include <cuda/ptx.cuh>
#include <exception>
#include <string>

namespace rnnfused {
namespace cuda {
namespace {

constexpr unsigned kThreads = 128;
constexpr int kKeepThreads = 256, kKept = 200;
constexpr unsigned kLine = 64;  // words between two flags: never in one line of L2

__global__ void __launch_bounds__(32) nothing() {}

// `rounds` times over a barrier; passed[block] = how often it held. With `checks` every block writes a word
// before it and reads its neighbour's after it; without, there is nothing but the barrier.
// slots: [2, blocks]. The blocks that meet are `members` neighbours from `first` on.
template <class Barrier>
__device__ __forceinline__ void meet(Global<uint32_t> slots, Global<uint32_t> passed, unsigned first,
                                     unsigned members, int rounds, int checks, Barrier barrier) {
  const unsigned own = blockIdx.x, next = first + (own - first + 1) % members;
  uint32_t held = 0;
  for (unsigned r = 0; r < unsigned(rounds); ++r) {
    const Global<uint32_t> now = slots + r % 2 * gridDim.x;
    if (checks && threadIdx.x == 0) now[own] = r + 1;
    barrier(r);
    if (checks) {
      const uint32_t seen = now[next];
      held += seen == r + 1 ? 1 : 0;
    } else {
      ++held;
    }
  }
  if (threadIdx.x == 0) passed[own] = held;
}

// The grid's own barrier.
__global__ void __launch_bounds__(kThreads)
    grid_barriers(Global<uint32_t> slots, Global<uint32_t> passed, int rounds, int checks) {
  meet(slots, passed, 0, gridDim.x, rounds, checks, [](unsigned) { grid_sync(); });
}

// One made of a counter that the blocks add to and poll.
__global__ void __launch_bounds__(kThreads)
    counter_barriers(Global<uint32_t> counter, Global<uint32_t> slots, Global<uint32_t> passed, int rounds,
                     int checks) {
  meet(slots, passed, 0, gridDim.x, rounds, checks, [&](unsigned r) {
    block_sync();
    if (threadIdx.x == 0) {
      atomic_add(counter, 1);
      poll_until([&] { return load_acquire(counter) >= (r + 1) * gridDim.x; });
    }
    block_sync();
  });
}

__global__ void __launch_bounds__(kThreads)
    cluster_barriers(Global<uint32_t> slots, Global<uint32_t> passed, int rounds, int checks) {
  const unsigned size = cluster_size();
  meet(slots, passed, blockIdx.x - cluster_rank(), size, rounds, checks, [](unsigned) { cluster_sync(); });
}

// A word goes to and fro between the first and the last block of a cluster, one more at each hop, through
// shared memory. passed[block] = the last word it got: 2 rounds, and 2 rounds - 1.
__global__ void __launch_bounds__(32) cluster_hops(Global<uint32_t> passed, int rounds) {
  const unsigned rank = cluster_rank(), last = cluster_size() - 1;
  const Shared<uint32_t> word = shared_memory<uint32_t>(0);
  const Shared<Mbarrier> full = shared_memory<Mbarrier>(16);
  if (threadIdx.x == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
    if (rank == 0 || rank == last) mbarrier_arrive_expect_tx(full, 4);
  }
  cluster_sync();
  if (threadIdx.x == 0 && (rank == 0 || rank == last)) {
    const unsigned peer = rank == 0 ? last : 0;
    const Remote<uint32_t> there = cluster_map(word, peer);
    const Remote<Mbarrier> completes = cluster_map(full, peer);
    uint32_t value = 0;
    for (unsigned r = 0; r < unsigned(rounds); ++r) {
      if (rank == 0) st_async(there, value + 1, completes);
      mbarrier_wait(full, r);
      value = word[0];
      // Armed before the word that lets the peer send the next one.
      if (r + 1 < unsigned(rounds)) mbarrier_arrive_expect_tx(full, 4);
      if (rank != 0) st_async(there, value + 1, completes);
    }
    passed[blockIdx.x] = value;
  }
  cluster_sync();
}

// Every block sends 16 bytes a thread to every block of its cluster, waits for all of theirs, and goes on
// with what it got: a step of a recurrence without its arithmetic. passed[block] = steps.
__global__ void __launch_bounds__(kThreads) cluster_exchanges(Global<uint32_t> passed, int steps) {
  const unsigned i = threadIdx.x, threads = blockDim.x, rank = cluster_rank(), size = cluster_size();
  const unsigned all = threads * size, bytes = all * unsigned(sizeof(uint4));
  const Shared<uint4> words = shared_memory<uint4>(0);                       // [2, size, threads]
  const Shared<Mbarrier> full = shared_memory<Mbarrier>(2 * size_t(bytes));  // [2]
  if (i == 0) {
    for (unsigned k = 0; k < 2; ++k) mbarrier_init(full + k, 1);
    fence_mbarrier_init();
    for (unsigned k = 0; k < 2 && k < unsigned(steps); ++k) mbarrier_arrive_expect_tx(full + k, bytes);
  }
  cluster_sync();
  uint32_t value = 0;
  for (unsigned t = 0; t < unsigned(steps); ++t) {
    const Shared<uint4> now = words + t % 2 * all;
    const uint4 sent = make_uint4(value + 1, rank, i, t);
    for (unsigned k = 0; k < size; ++k) {
      const unsigned peer = (rank + k) % size;  // not all to the same one at once
      st_async(cluster_map(now + (rank * threads + i), peer), sent, cluster_map(full + t % 2, peer));
    }
    mbarrier_wait(full + t % 2, t / 2);
    // Armed before this block's next words, without which no peer gets to the step after that.
    if (i == 0 && t + 2 < unsigned(steps)) mbarrier_arrive_expect_tx(full + t % 2, bytes);
    const uint4 got = now[(rank + 1) % size * threads + i];
    value = got.x;
    block_sync();  // the step's end, as where a block's threads share what came
  }
  if (i == 0) passed[blockIdx.x] = value;
  cluster_sync();
}

// A word goes to and fro between two blocks through L2: a release store, and an acquire load that polls.
__global__ void __launch_bounds__(32) l2_hops(Global<uint32_t> flags, Global<uint32_t> passed, int rounds) {
  if (threadIdx.x != 0) return;
  const Global<uint32_t> mine = flags + blockIdx.x * kLine, other = flags + (1 - blockIdx.x) * kLine;
  for (unsigned r = 0; r < unsigned(rounds); ++r) {
    if (blockIdx.x == 0) store_release(other, uint32_t(r + 1));
    poll_until([&] { return load_acquire(mine) == r + 1; });
    if (blockIdx.x == 1) store_release(other, uint32_t(r + 1));
  }
  passed[blockIdx.x] = load_acquire(mine);
}

// Keeps so much in registers that a multiprocessor has room for one block, as kernels do that keep weights
// there: how many clusters of such blocks run at once?
__global__ void __launch_bounds__(kKeepThreads, 1) keep(float* memory, int rounds) {
  float* const own = memory + threadIdx.x;
  float kept[kKept];
  RNNFUSED_UNROLL
  for (int i = 0; i < kKept; ++i) kept[i] = own[i * kKeepThreads];
  for (int round = 0; round < rounds; ++round) {
    RNNFUSED_UNROLL
    for (int i = 0; i < kKept; ++i) kept[i] = kept[i] * kept[(i + 1) % kKept] + kept[(i + 7) % kKept];
  }
  RNNFUSED_UNROLL
  for (int i = 0; i < kKept; ++i) own[i * kKeepThreads] = kept[i];
}

std::string& last_error() {
  static std::string text;
  return text;
}

// 0, or 1 and a text for limits_error(): no exception leaves the library.
template <class Body>
int guarded(Body body) {
  try {
    body();
    return 0;
  } catch (const std::exception& error) {
    last_error() = error.what();
    return 1;
  }
}

LaunchConfig blocks(int count, unsigned threads) {
  LaunchConfig config;
  config.grid.x = unsigned(count);
  config.block.x = threads;
  return config;
}

}  // namespace
}  // namespace cuda
}  // namespace rnnfused

// Every function starts its kernels on `stream`, and returns 0 or, with a text, 1. `passed` has a word per
// block, `slots` two; `counter` and `flags` ([2, 64]) must be zero.
extern "C" {

namespace gpu = rnnfused::cuda;

const char* limits_error() { return gpu::last_error().c_str(); }

int limits_nothing(void* stream, int launches) {
  return gpu::guarded([&] {
    for (int i = 0; i < launches; ++i) gpu::launch(gpu::blocks(1, 32), stream, gpu::nothing);
  });
}

int limits_grid_barriers(void* stream, uint32_t* slots, uint32_t* passed, int count, int rounds, int checks) {
  return gpu::guarded([&] {
    gpu::LaunchConfig config = gpu::blocks(count, gpu::kThreads);
    config.cooperative = true;
    gpu::launch(config, stream, gpu::grid_barriers, slots, passed, rounds, checks);
  });
}

int limits_counter_barriers(void* stream, uint32_t* counter, uint32_t* slots, uint32_t* passed, int count,
                            int rounds, int checks) {
  return gpu::guarded([&] {
    gpu::LaunchConfig config = gpu::blocks(count, gpu::kThreads);
    config.cooperative = true;  // all blocks run at once, or none does
    gpu::launch(config, stream, gpu::counter_barriers, counter, slots, passed, rounds, checks);
  });
}

int limits_cluster_barriers(void* stream, uint32_t* slots, uint32_t* passed, int cluster, int rounds,
                            int checks) {
  return gpu::guarded([&] {
    gpu::LaunchConfig config = gpu::blocks(cluster, gpu::kThreads);
    config.cluster = cluster;
    gpu::launch(config, stream, gpu::cluster_barriers, slots, passed, rounds, checks);
  });
}

int limits_cluster_hops(void* stream, uint32_t* passed, int cluster, int rounds) {
  return gpu::guarded([&] {
    gpu::LaunchConfig config = gpu::blocks(cluster, 32);
    config.cluster = cluster;
    config.shared_bytes = 16 + int(sizeof(gpu::Mbarrier));
    gpu::launch(config, stream, gpu::cluster_hops, passed, rounds);
  });
}

// `threads`: of a block, each of which sends 16 bytes to every block.
int limits_cluster_exchanges(void* stream, uint32_t* passed, int cluster, int steps, int threads) {
  return gpu::guarded([&] {
    gpu::LaunchConfig config = gpu::blocks(cluster, threads);
    config.cluster = cluster;
    config.shared_bytes = 2 * cluster * threads * int(sizeof(uint4)) + 2 * int(sizeof(gpu::Mbarrier));
    gpu::launch(config, stream, gpu::cluster_exchanges, passed, steps);
  });
}

// `clusters`: how many run at once; 0 where the device has no room for one.
int limits_max_clusters(int cluster, int shared_bytes, int* clusters) {
  return gpu::guarded([&] {
    gpu::LaunchConfig config = gpu::blocks(cluster, gpu::kKeepThreads);
    config.cluster = cluster;
    config.shared_bytes = shared_bytes;
    *clusters = gpu::max_active_clusters(config, gpu::keep);
  });
}

int limits_l2_hops(void* stream, uint32_t* flags, uint32_t* passed, int rounds) {
  return gpu::guarded([&] {
    gpu::LaunchConfig config = gpu::blocks(2, 32);
    config.cooperative = true;
    gpu::launch(config, stream, gpu::l2_hops, flags, passed, rounds);
  });
}
}
