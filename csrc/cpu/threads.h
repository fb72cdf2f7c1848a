// One parallel region per call, the barriers inside it, and what becomes of both where processors are scarce.
#pragma once

#include <atomic>
#include <chrono>

#include "core/sequence.h"

namespace rnnfused {

constexpr int kMaxThreads = 256;

// How many threads a region started here can have running at once: never more than the processors that this
// process may run on (spinning for a thread that has none is pure loss), and one inside another parallel
// region.
int usable_threads();

// Runs body(context, thread) for every thread in [0, threads), the caller being thread 0.
void parallel(int threads, void (*body)(void* context, int thread), void* context);

// Where the members of a region run. Linux may wake one on the processor of another although there are idle
// ones (seen in virtual machines); and since the two then take turns, one asleep while the other runs, the
// processor never looks crowded and they stay there for milliseconds. So whoever finds itself beside another
// member moves.
class Places {
 public:
  explicit Places(int members);

  // The calling thread is this member, from its beginning and after every sleep.
  void settle(int member);
  // It falls asleep, and may wake up anywhere.
  void leave(int member);
  // Whether another member may be waiting for this one's processor: it is not known to run elsewhere.
  bool may_crowd(int member) const;

 private:
  // Of a region, for each member: where other processes keep every processor busy moving is of no use.
  static constexpr int kMostMoves = 2;

  bool is_taken(int processor, int but_by) const;
  // To a processor that no other member runs on. What the thread may run on is the same afterwards.
  void move(int member) const;

  int members_;
  std::atomic<int> moves_{0};
  std::atomic<int> processor_[kMaxThreads];  // -1: not there yet, or asleep
};

// Time that threads have spent asleep.
using Asleep = std::atomic<std::chrono::nanoseconds::rep>;

// A number that only grows, for which threads wait: awake for a short time, then asleep, so that whoever they
// wait for finds a processor. Where every thread has a processor of its own nobody ever sleeps; a member of a
// region that may be on another's first naps, for it to move away, and waits awake once more.
class Awaited {
 public:
  // `asleep`, or null, is told how long the sleepers slept.
  explicit Awaited(Asleep* asleep = nullptr) : asleep_(asleep) {}
  Awaited(const Awaited& other) : asleep_(other.asleep_) {}  // a fresh one

  unsigned value() const { return value_.load(std::memory_order_relaxed); }
  // Whatever was written before is seen by all who wait for the value.
  void set(unsigned value);
  // Until it is beyond `before`; both may wrap around.
  void wait_past(unsigned before);

 private:
  alignas(64) std::atomic<unsigned> value_{0};
  std::atomic<int> sleepers_{0};
  Asleep* asleep_;
};

// All members meet; what any of them wrote before is seen by all of them after.
class Barrier {
 public:
  explicit Barrier(int members, Asleep* asleep = nullptr) : epoch_(asleep), members_(members) {}
  // A copy is a fresh barrier for as many members.
  Barrier(const Barrier& other) : epoch_(other.epoch_), members_(other.members_) {}
  void wait();

 private:
  alignas(64) std::atomic<int> arrived_{0};
  Awaited epoch_;
  int members_;
};

// How many steps a stream has done, for those who read what it writes.
class Progress {
 public:
  explicit Progress(Asleep* asleep = nullptr) : done_(asleep) {}
  void set(Index steps) { done_.set(unsigned(steps)); }
  void wait_for(Index steps) { done_.wait_past(unsigned(steps) - 1); }

 private:
  Awaited done_;
};

// Whether this process has the processors that it counts on. A thread that shares its processor with another
// process makes all those wait that meet it at every step: two calls of short steps in a row, which lost much
// of their time so, make the next ones run on one thread, for a while that grows as long as it is so. Results
// do not depend on it.
class Scarcity {
 public:
  using Clock = std::chrono::steady_clock;

  // As many threads as wanted, or one.
  static int threads(int wanted);
  // What became of a call of steps of so many microseconds on several threads.
  static void report(double step_us, std::chrono::nanoseconds took, std::chrono::nanoseconds asleep);
  // Calls that were found to have lost their time, and whether calls run on one thread now.
  static Index losses();
  static bool is_now();
};

}  // namespace rnnfused
