// Barriers, and what a warp does together.
#pragma once

#include <cstdint>
#include <cstring>

#include "emulation/fault.h"
#include "emulation/shared.h"

namespace rnnfused {
namespace emulation {

enum class Shuffle { exclusive_or, down };

void meet_block(Site site);
void meet_warp(Site site);
void meet_cluster(Site site);
void meet_grid(Site site);
uint32_t shuffle_word(uint32_t value, Shuffle kind, unsigned argument, Site site);
Block* peer_block(unsigned rank, Site site);
unsigned own_cluster_rank();
unsigned own_cluster_size();

template <class T>
T shuffle_value(const T& value, Shuffle kind, unsigned argument, Site site) {
  static_assert(sizeof(T) == 4, "a shuffle moves 32 bits");
  uint32_t word;
  std::memcpy(&word, &value, 4);
  word = shuffle_word(word, kind, argument, site);
  T result;
  std::memcpy(&result, &word, 4);
  return result;
}

}  // namespace emulation

namespace cuda {

inline void block_sync(emulation::Site site = emulation::Site::here()) { emulation::meet_block(site); }

// All lanes of a warp call these together.
inline void warp_sync(emulation::Site site = emulation::Site::here()) { emulation::meet_warp(site); }
template <class T>
T shuffle_xor(T value, unsigned mask, emulation::Site site = emulation::Site::here()) {
  return emulation::shuffle_value(value, emulation::Shuffle::exclusive_or, mask, site);
}
// From `delta` lanes further on; the last ones keep theirs.
template <class T>
T shuffle_down(T value, unsigned delta, emulation::Site site = emulation::Site::here()) {
  return emulation::shuffle_value(value, emulation::Shuffle::down, delta, site);
}

inline unsigned cluster_rank() { return emulation::own_cluster_rank(); }
inline unsigned cluster_size() { return emulation::own_cluster_size(); }
inline void cluster_sync(emulation::Site site = emulation::Site::here()) { emulation::meet_cluster(site); }
// Where the block of that rank has what `pointer` points to in this block.
template <class T>
Shared<T> cluster_map(const Shared<T>& pointer, unsigned rank,
                      emulation::Site site = emulation::Site::here()) {
  return Shared<T>(emulation::peer_block(rank, site), pointer.offset(), site);
}

// Of a cooperative launch.
inline void grid_sync(emulation::Site site = emulation::Site::here()) { emulation::meet_grid(site); }

}  // namespace cuda
}  // namespace rnnfused
