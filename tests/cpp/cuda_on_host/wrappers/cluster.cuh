// Clusters: barriers, and stores into their blocks.
#pragma once

#include "checks.h"

namespace rnnfused {
namespace cuda {
namespace {

constexpr unsigned kClusters = 2;  // in a grid

// `check(size)` for clusters of 2 to 8 blocks.
template <class Check>
std::string for_clusters(Check check) {
  for (unsigned size = 2; size <= 8; ++size) {
    const std::string found = check(size);
    if (!found.empty()) return "clusters of " + std::to_string(size) + ": " + found;
  }
  return "";
}

LaunchConfig clusters_of(unsigned size, size_t shared_bytes) {
  LaunchConfig config = blocks_of(kClusters * size, kLanes, shared_bytes);
  config.cluster = int(size);
  return config;
}

// What every block has of every block of its cluster in each round, its lanes last first: word(round, block,
// peer, lane).
template <class T, class Word>
std::vector<T> from_peers(unsigned rounds, unsigned size, Word word) {
  std::vector<T> all;
  for (unsigned round = 0; round < rounds; ++round)
    for (unsigned block = 0; block < kClusters * size; ++block)
      for (unsigned rank = 0; rank < size; ++rank)
        for (unsigned i = kLanes; i-- > 0;) all.push_back(word(round, block, block / size * size + rank, i));
  return all;
}

__global__ void __launch_bounds__(kLanes) tell_ranks(uint32_t* out) {
  if (threadIdx.x == 0) out[blockIdx.x] = cluster_rank() << 16 | cluster_size();
}

std::string check_ranks() {
  return for_clusters([](unsigned size) {
    const Buffer<uint32_t> out(std::vector<uint32_t>(kClusters * size, 7));
    launch(clusters_of(size, 0), nullptr, tell_ranks, out.data());
    std::vector<uint32_t> expected;
    for (unsigned block = 0; block < kClusters * size; ++block) expected.push_back(block % size << 16 | size);
    return compare(out.read(), expected);
  });
}

// Every block reads what every block of its cluster has written into global memory, which changes between
// barriers.
__global__ void __launch_bounds__(kLanes) read_peers(Global<uint32_t> words, uint32_t* out, unsigned rounds) {
  const unsigned i = threadIdx.x, size = cluster_size(), first = blockIdx.x - cluster_rank();
  for (unsigned round = 0; round < rounds; ++round) {
    words[blockIdx.x * kLanes + i] = mix((round * gridDim.x + blockIdx.x) * kLanes + i);
    cluster_sync();
    for (unsigned rank = 0; rank < size; ++rank) {
      const uint32_t word = words[(first + rank) * kLanes + (kLanes - 1 - i)];
      out[((round * gridDim.x + blockIdx.x) * size + rank) * kLanes + i] = word;
    }
    cluster_sync();
  }
}

std::string check_peers() {
  constexpr unsigned kRounds = 3;
  return for_clusters([&](unsigned size) {
    const unsigned blocks = kClusters * size;
    const auto expected =
        from_peers<uint32_t>(kRounds, size, [&](unsigned round, unsigned, unsigned peer, unsigned i) {
          return mix((round * blocks + peer) * kLanes + i);
        });
    const Buffer<uint32_t> words(std::vector<uint32_t>(blocks * kLanes, 7));
    const Buffer<uint32_t> out(std::vector<uint32_t>(expected.size(), 7));
    launch(clusters_of(size, 0), nullptr, read_peers, words.data(), out.data(), kRounds);
    return compare(out.read(), expected);
  });
}

// ---- Asynchronous stores into the cluster

// What a lane of a block sends to another at a step.
template <class T>
__host__ __device__ inline T message(unsigned step, unsigned from, unsigned to, unsigned lane) {
  uint32_t words[sizeof(T) / 4];
  for (unsigned k = 0; k < sizeof(T) / 4; ++k)
    words[k] = mix(((step * 64 + from) * 64 + to) * kLanes + lane) ^ k;
  T value;
  memcpy(&value, words, sizeof value);
  return value;
}

// Step after step from every lane of every block to all blocks of the cluster, through two buffers. Where
// `cast` is set, pointers come from casts.
template <class T>
__global__ void __launch_bounds__(kLanes) send(T* out, unsigned steps, bool cast) {
  const unsigned i = threadIdx.x, rank = cluster_rank(), size = cluster_size();
  const unsigned all = size * kLanes, bytes = all * unsigned(sizeof(T)), first = blockIdx.x - rank;
  const Shared<T> words = shared_memory<T>(0);                                 // [2, size, kLanes]
  const Shared<Mbarrier> full = shared_memory<Mbarrier>(2 * all * sizeof(T));  // [2]
  if (i == 0) {
    for (unsigned k = 0; k < 2; ++k) mbarrier_init(full + k, 1);
    fence_mbarrier_init();
    for (unsigned k = 0; k < 2; ++k) mbarrier_arrive_expect_tx(full + k, bytes);
  }
  cluster_sync();
  for (unsigned step = 0; step < steps; ++step) {
    const Shared<T> now = words + step % 2 * all;
    for (unsigned peer = 0; peer < size; ++peer) {
      const T value = message<T>(step, blockIdx.x, first + peer, i);
      // The place is the same, whichever way it is found.
      const Remote<T> there = cluster_map(now + (rank * kLanes + i), peer);
      const Remote<T> around =
          remote_cast<T>(remote_cast<uint32_t>(cluster_map(now, peer))) + int(rank * kLanes + i);
      st_async(cast ? around : there, value, cluster_map(full + step % 2, peer));
    }
    mbarrier_wait(full + step % 2, step / 2);
    // Armed before this block's next words, without which no peer gets to the step after that.
    if (i == 0 && step + 2 < steps) mbarrier_arrive_expect_tx(full + step % 2, bytes);
    for (unsigned peer = 0; peer < size; ++peer) {
      const T got = now[peer * kLanes + (kLanes - 1 - i)];
      out[((step * gridDim.x + blockIdx.x) * size + peer) * kLanes + i] = got;
    }
    warp_sync();  // all have read before any lane's next words let a peer write here again
  }
  cluster_sync();
}

template <class T>
std::string check_send(bool cast) {
  constexpr unsigned kSteps = 5;
  return for_clusters([&](unsigned size) {
    const auto expected =
        from_peers<T>(kSteps, size, [](unsigned step, unsigned block, unsigned peer, unsigned i) {
          return message<T>(step, peer, block, i);
        });
    const Buffer<T> out(std::vector<T>(expected.size(), T{}));
    launch(clusters_of(size, 2 * size * kLanes * sizeof(T) + 2 * sizeof(Mbarrier)), nullptr, send<T>,
           out.data(), kSteps, cast);
    return compare(out.read(), expected);
  });
}
template <class T>
std::string check_st_async() {
  return check_send<T>(false);
}
std::string check_casts_of_remotes() { return check_send<uint2>(true); }

}  // namespace

inline WrapperChecks cluster_checks() {
  return {
      {"cluster_rank", "", 90, check_ranks},
      {"cluster_size", "", 90, check_ranks},
      {"cluster_sync", "", 90, check_peers},
      {"cluster_map", "", 90, check_st_async<uint32_t>},
      {"remote_cast", "", 90, check_casts_of_remotes},
      {"mbarrier_arrive_expect_tx", "", 90, check_st_async<uint32_t>},
      {"fence_mbarrier_init", "", 90, check_st_async<uint32_t>},
      {"st_async", "4 bytes", 90, check_st_async<uint32_t>},
      {"st_async", "8 bytes", 90, check_st_async<uint2>},
      {"st_async", "16 bytes", 90, check_st_async<uint4>},
  };
}

}  // namespace cuda
}  // namespace rnnfused
