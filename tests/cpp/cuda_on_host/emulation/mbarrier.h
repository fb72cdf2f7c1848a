// mbarriers in shared memory, and the asynchronous stores to peers that complete on them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "emulation/clock.h"
#include "emulation/shadow.h"
#include "emulation/shared.h"

namespace rnnfused {
namespace cuda {

// An opaque object in shared memory.
struct alignas(8) Mbarrier {
  uint64_t opaque;
};

}  // namespace cuda

namespace emulation {

struct Block;
struct Thread;
class Grid;

// What a thread lets others know, before it is joined with what else they learn.
struct Published {
  ClockPtr clock;
  Actor actor = 0, engine = 0;
  uint32_t time = 0, copies = 0;

  void add_to(ClockBuilder& builder) const;
};

struct MbarrierState {
  uint32_t number = 0;  // in its block
  uint32_t count = 0, pending = 0;
  int64_t tx = 0;      // bytes expected and not yet come
  uint32_t phase = 0;  // the one in progress
  Access init;
  bool fenced = false;  // its initialisation is visible to the cluster
  ClockBuilder arriving;
  ClockPtr completed;  // what the last phase's arrivals published
  std::vector<Thread*> waiting;

  std::string str() const;
};

// One st.async in flight.
struct RemoteStore {
  Block *issuer, *target;
  std::ptrdiff_t offset, mbarrier;
  unsigned char value[16];
  size_t bytes;
  uint32_t phase;  // of the mbarrier at issue
  Access access;
  Published published;  // by its thread at issue

  void deliver(Grid& grid) const;
};

using MbarrierPlace = const cuda::Shared<cuda::Mbarrier>&;

void init_mbarrier(MbarrierPlace place, unsigned count, Site site);
void fence_inits(Site site);
// Expects `bytes` more, then arrives.
void arrive(MbarrierPlace place, uint32_t bytes, const char* what, Site site);
bool test_phase(MbarrierPlace place, uint32_t phase, Site site);
void wait_for_phase(MbarrierPlace place, uint32_t phase, Site site);
void store_async(Block* target, std::ptrdiff_t offset, const void* value, size_t bytes, MbarrierPlace place,
                 Site site);

}  // namespace emulation

namespace cuda {

// By one thread; the others may use it after a barrier. `count` arrivals end a phase.
inline void mbarrier_init(Shared<Mbarrier> barrier, unsigned count,
                          emulation::Site site = emulation::Site::here()) {
  emulation::init_mbarrier(barrier, count, site);
}
// By the thread that initialised, before the barrier that lets peers use it.
inline void fence_mbarrier_init(emulation::Site site = emulation::Site::here()) {
  emulation::fence_inits(site);
}
inline void mbarrier_arrive(Shared<Mbarrier> barrier, emulation::Site site = emulation::Site::here()) {
  emulation::arrive(barrier, 0, "mbarrier_arrive", site);
}
inline void mbarrier_arrive_expect_tx(Shared<Mbarrier> barrier, unsigned bytes,
                                      emulation::Site site = emulation::Site::here()) {
  emulation::arrive(barrier, bytes, "mbarrier_arrive_expect_tx", site);
}
// `phase` counts from 0; whether it has ended.
inline bool mbarrier_test(Shared<Mbarrier> barrier, unsigned phase,
                          emulation::Site site = emulation::Site::here()) {
  return emulation::test_phase(barrier, phase, site);
}
// Until `phase` has ended.
inline void mbarrier_wait(Shared<Mbarrier> barrier, unsigned phase,
                          emulation::Site site = emulation::Site::here()) {
  emulation::wait_for_phase(barrier, phase, site);
}

// Stores `value` into the shared memory of a block of the cluster, later; then counts its bytes on an
// mbarrier there. Both pointers come from cluster_map.
template <class T>
void st_async(Shared<T> destination, const T& value, Shared<Mbarrier> barrier,
              emulation::Site site = emulation::Site::here()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "st.async stores 4, 8 or 16 bytes");
  emulation::store_async(destination.block(), destination.offset(), &value, sizeof value, barrier, site);
}

}  // namespace cuda
}  // namespace rnnfused
