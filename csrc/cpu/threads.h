// One parallel region per call and the barriers inside it.
#pragma once

#include <atomic>

#include "core/sequence.h"

namespace rnnfused {

constexpr int kMaxThreads = 256;

// How many threads a region started here can have running at once: never more than the processors that this
// process may run on (spinning for a thread that has none is pure loss), and one inside another parallel
// region.
int usable_threads();

// Runs body(context, thread) for every thread in [0, threads), the caller being thread 0.
void parallel(int threads, void (*body)(void* context, int thread), void* context);

// All members meet; what any of them wrote before is seen by all of them after.
class Barrier {
 public:
  explicit Barrier(int members) : members_(members) {}
  // A copy is a fresh barrier for as many members.
  Barrier(const Barrier& other) : members_(other.members_) {}
  void wait();

 private:
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> epoch_{0};
  int members_;
};

// How many steps a stream has done, for those who read what it writes.
class Progress {
 public:
  void set(Index steps) { done_.store(steps, std::memory_order_release); }
  void wait_for(Index steps) const;

 private:
  alignas(64) std::atomic<Index> done_{0};
};

}  // namespace rnnfused
