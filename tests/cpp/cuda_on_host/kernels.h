// Small kernels with the protocols that the recurrent kernels use, and the mistakes that one makes in them.
#pragma once

#include <cuda/launch.cuh>
#include <cuda/ptx.cuh>

#include "testing.h"

namespace rnnfused {
namespace cuda {

enum class Plant {
  none,
  no_sync,          // a barrier is missing between the accesses of different threads
  diverges,         // half of the threads wait at another barrier
  exits_early,      // some threads never come to the barrier
  writes_beyond,    // the end of shared memory
  reads_beyond,     //
  reads_unwritten,  // shared memory
  no_copy_wait,     // cp.async not waited for
  waits_for_fewer,  // cp.async groups than it reads
  exits_with_copy,  // in flight
  source_beyond,    // cp.async from outside of a buffer
  no_first_sync,    // of the cluster
  no_last_sync,     // of the cluster
  no_fence,         // after mbarrier_init
  one_buffer,       // where two are needed
  stale_phase,      // waits for a phase that has long ended
  future_phase,     // waits for a phase that nobody has begun
  expects_more,     // bytes than come
  expects_less,     //
  never_releases,   // a buffer that it has read
  ignores_release,  // of a buffer that it writes
  relaxed_counter,  // a counter that orders nothing
  counts_too_far,   // waits for more arrivals than there are
  spins_by_hand,    // outside of poll_until
};

// out[row] = the sum of in[row, :], by one block, row after row through the same shared memory.
template <Plant P>
__global__ void sum_rows(const float* in, float* out, int rows) {
  const unsigned i = threadIdx.x, warps = blockDim.x / 32;
  const Shared<float> partial = shared_memory<float>(0);
  if (P == Plant::exits_early && i >= 64) return;
  for (int row = 0; row < rows; ++row) {
    float value = in[unsigned(row) * blockDim.x + i];
    for (unsigned delta = 16; delta > 0; delta /= 2) value += shuffle_down(value, delta);
    if (i % 32 == 0) {
      if (P == Plant::writes_beyond) {
        PLANTED(partial[i / 32 + 1] = value);
      } else {
        PLANTED(partial[i / 32] = value);
      }
    }
    if (P == Plant::diverges && i < 32) {
      PLANTED(block_sync());
    } else {
      PLANTED(block_sync());
    }
    if (i == 0) {
      float sum = 0;
      const unsigned end = P == Plant::reads_beyond ? warps + 1 : warps;
      for (unsigned warp = 0; warp < end; ++warp) {
        const float part = PLANTED(partial[warp]);
        sum += part;
      }
      out[row] = sum;
    }
    // The next row's parts go where thread 0 still reads.
    if (P != Plant::no_sync) block_sync();
  }
}

// out[i] = in[i] + in[i + 1] of each tile of blockDim.x (the last one's neighbour is the first), with the
// next tile on its way.
template <Plant P>
__global__ void add_neighbours(const float* in, float* out, int tiles) {
  const unsigned i = threadIdx.x, n = blockDim.x;
  const Shared<float> stage = shared_memory<float>(0);  // [2, n]
  const auto load = [&](unsigned tile) {
    const unsigned shift = P == Plant::source_beyond ? 1 : 0;
    PLANTED(cp_async<4>(stage + (tile % 2 * n + i), in + tile * n + i + shift));
    cp_async_commit();
  };
  const unsigned count = unsigned(tiles);
  load(0);
  for (unsigned tile = 0; tile < count; ++tile) {
    const bool more = tile + 1 < count;
    if (more) load(tile + 1);
    if (P == Plant::waits_for_fewer || (more && P != Plant::no_copy_wait)) {
      cp_async_wait<1>();
    } else if (P != Plant::no_copy_wait) {
      cp_async_wait<0>();
    }
    if (P != Plant::no_sync) block_sync();
    const float own = PLANTED(stage[tile % 2 * n + i]);
    const float next = PLANTED(stage[tile % 2 * n + (i + 1) % n]);
    out[tile * n + i] = own + next;
    block_sync();
  }
  if (P == Plant::exits_with_copy) load(0);
}

// h of every block goes to all blocks of its cluster, step after step: h' = (own + the mean of all) / 2.
template <Plant P>
__global__ void exchange_in_cluster(const float* start, float* out, int steps) {
  const unsigned i = threadIdx.x, n = blockDim.x, rank = cluster_rank(), size = cluster_size();
  const unsigned all = n * size, bytes = all * unsigned(sizeof(float));
  const Shared<float> h = shared_memory<float>(0);                   // [2, all]
  const Shared<Mbarrier> full = shared_memory<Mbarrier>(2 * bytes);  // [2]
  const unsigned expected = P == Plant::expects_more   ? bytes + 4
                            : P == Plant::expects_less ? bytes - 4
                                                       : bytes;
  if (i == 0) {
    for (unsigned k = 0; k < 2; ++k) PLANTED(mbarrier_init(full + k, 1));
    if (P != Plant::no_fence) fence_mbarrier_init();
    for (unsigned k = 0; k < 2; ++k) mbarrier_arrive_expect_tx(full + k, expected);
  }
  if (P != Plant::no_first_sync) cluster_sync();

  float value = start[blockIdx.x * n + i];
  for (unsigned t = 0; t < unsigned(steps); ++t) {
    const Shared<float> now = h + (P == Plant::one_buffer ? 0 : t % 2 * all);
    for (unsigned peer = 0; peer < size; ++peer) {
      const auto place = cluster_map(now + (rank * n + i), peer);
      PLANTED(st_async(place, value, cluster_map(full + t % 2, peer)));
    }
    const unsigned phase = P == Plant::stale_phase ? 0 : P == Plant::future_phase ? t / 2 + 1 : t / 2;
    PLANTED(mbarrier_wait(full + t % 2, phase));
    // Armed before this block's next part goes out, without which no peer gets to the step after that.
    if (i == 0 && t + 2 < unsigned(steps)) PLANTED(mbarrier_arrive_expect_tx(full + t % 2, expected));
    float mean = 0;
    for (unsigned k = 0; k < all; ++k) {
      const float part = PLANTED(now[k]);
      mean += part;
    }
    value = (value + mean / float(all)) / 2;
  }
  out[blockIdx.x * n + i] = value;
  if (P != Plant::no_last_sync) cluster_sync();
}

// The same over a cooperative grid, through two buffers in global memory and a counter.
template <Plant P>
__global__ void exchange_in_grid(const float* start, Global<float> h, Global<uint32_t> counter, float* out,
                                 int steps) {
  const unsigned i = threadIdx.x, n = blockDim.x, all = n * gridDim.x;
  float value = start[blockIdx.x * n + i];
  for (unsigned t = 0; t < unsigned(steps); ++t) {
    const Global<float> now = h + (P == Plant::one_buffer ? 0 : t % 2 * all);
    PLANTED(now[blockIdx.x * n + i] = value);
    block_sync();
    if (i == 0) {
      const uint32_t target = (t + 1) * gridDim.x + (P == Plant::counts_too_far ? 1 : 0);
      if (P == Plant::relaxed_counter) {
        atomic_add_relaxed(counter, 1);
      } else {
        atomic_add(counter, 1);
      }
      if (P == Plant::spins_by_hand) {
        while (PLANTED(load_acquire(counter)) < target + 1) {
        }
      }
      PLANTED(poll_until([&] { return load_acquire(counter) >= target; }));
    }
    block_sync();
    float mean = 0;
    for (unsigned k = 0; k < all; ++k) {
      const float part = PLANTED(now[k]);
      mean += part;
    }
    value = (value + mean / float(all)) / 2;
  }
  out[blockIdx.x * n + i] = value;
}

// The same with the grid's own barrier.
inline __global__ void exchange_by_grid_sync(const float* start, Global<float> h, float* out, int steps) {
  const unsigned i = threadIdx.x, n = blockDim.x, all = n * gridDim.x;
  float value = start[blockIdx.x * n + i];
  for (unsigned t = 0; t < unsigned(steps); ++t) {
    const Global<float> now = h + t % 2 * all;
    now[blockIdx.x * n + i] = value;
    grid_sync();
    float mean = 0;
    for (unsigned k = 0; k < all; ++k) {
      const float part = now[k];
      mean += part;
    }
    value = (value + mean / float(all)) / 2;
  }
  out[blockIdx.x * n + i] = value;
}

// Warp 0 reads, warp 1 doubles and writes, through a ring of two stages.
template <Plant P>
__global__ void hand_over(const float* in, float* out, int tiles) {
  const unsigned i = threadIdx.x % 32;
  const bool producer = threadIdx.x < 32;
  const Shared<float> ring = shared_memory<float>(0);                // [2, 32]
  const Shared<Mbarrier> full = shared_memory<Mbarrier>(256);        // [2]
  const Shared<Mbarrier> empty = shared_memory<Mbarrier>(256 + 16);  // [2]
  if (threadIdx.x == 0) {
    for (unsigned k = 0; k < 2; ++k) {
      PLANTED(mbarrier_init(full + k, 32));
      mbarrier_init(empty + k, 32);
    }
  }
  if (P != Plant::no_sync) block_sync();
  for (unsigned tile = 0; tile < unsigned(tiles); ++tile) {
    const unsigned stage = tile % 2, use = tile / 2;
    if (producer) {
      if (use > 0 && P != Plant::ignores_release) PLANTED(mbarrier_wait(empty + stage, use - 1));
      PLANTED(ring[stage * 32 + i] = in[tile * 32 + i]);
      PLANTED(mbarrier_arrive(full + stage));
    } else {
      PLANTED(mbarrier_wait(full + stage, use));
      const float value = PLANTED(ring[stage * 32 + (31 - i)]);
      if (P != Plant::never_releases) mbarrier_arrive(empty + stage);
      out[tile * 32 + (31 - i)] = 2 * value;
    }
  }
}

}  // namespace cuda
}  // namespace rnnfused
