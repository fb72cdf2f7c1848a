// In which order an emulated launch runs its threads and delivers its asynchronous writes.
#pragma once

#include <cstdint>

namespace rnnfused {
namespace emulation {

enum class Policy {
  round_robin,  // each thread in turn, up to where it must wait
  random,       // any thread, changed at random where one touches what others see
  priorities,   // the first of a random ranking of blocks or threads, which seldom changes
};

enum class Delivery {
  eager,   // at issue
  random,  // any time until somebody waits
  late,    // when nothing else can run
};

struct Schedule {
  uint64_t seed = 1;
  Policy policy = Policy::round_robin;
  Delivery delivery = Delivery::random;
  int resident_clusters = 2;  // of a launch that is not cooperative; no kernel may rely on it
  // What the device says of itself: its architecture, and how many clusters of any kernel it could hold.
  int arch = 900, active_clusters = 16;
  bool races = true;  // look for accesses that no synchronisation orders
  // Whether the end of a st.async orders what its thread did before it. Two buffers without "empty" barriers
  // rest on that; without it, such a protocol is a race.
  bool stores_publish = true;

  // RNNFUSED_EMULATION_SEED=<number>, _POLICY=round_robin|random|priorities, _DELIVERY=eager|random|late,
  // _RESIDENT=<number>, _ARCH=<number>,
  // _ACTIVE=<number>, _RACES=0|1, _STORES_PUBLISH=0|1
  static Schedule from_environment();
};

// The schedule of this OS thread's launches; at first what the environment says.
Schedule& schedule();

// A schedule for the rest of a scope.
class ScopedSchedule {
 public:
  explicit ScopedSchedule(const Schedule& during) : before_(schedule()) { schedule() = during; }
  ~ScopedSchedule() { schedule() = before_; }
  ScopedSchedule(const ScopedSchedule&) = delete;
  ScopedSchedule& operator=(const ScopedSchedule&) = delete;

 private:
  Schedule before_;
};

}  // namespace emulation
}  // namespace rnnfused
