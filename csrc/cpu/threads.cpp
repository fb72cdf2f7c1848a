#include "cpu/threads.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <thread>
#include <vector>

#include "core/log.h"

namespace rnnfused {
namespace {

// About 20 us: longer than any step that is worth sharing takes to even out, short enough to lose little when
// the machine is oversubscribed and the other member waits for a processor.
constexpr int kSpins = 1000;
// As long as another processor may take to wake up for a member that moves there.
constexpr int kSpinsAfterNap = 10 * kSpins;

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void futex(std::atomic<unsigned>& word, int operation, unsigned value) {
  static_assert(sizeof word == sizeof(unsigned));
  syscall(SYS_futex, reinterpret_cast<unsigned*>(&word), operation | FUTEX_PRIVATE_FLAG, value, nullptr,
          nullptr, 0);
}

// The calling thread's region and its place in it.
thread_local Places* places = nullptr;
thread_local int own_member = 0;

// Lets other threads run here, at no loss of this one's turn.
void nap() { std::this_thread::sleep_for(std::chrono::microseconds(1)); }

// How the calling thread rounds, and whether denormal numbers are zero to it, without what it has met so far.
#if defined(__x86_64__)
using FloatMode = unsigned;
constexpr FloatMode kMet = 0x3f;
FloatMode float_mode() { return __builtin_ia32_stmxcsr() & ~kMet; }
void set_float_mode(FloatMode mode) { __builtin_ia32_ldmxcsr(mode); }
#elif defined(__aarch64__)
using FloatMode = uint64_t;
FloatMode float_mode() {
  FloatMode mode;
  asm volatile("mrs %0, fpcr" : "=r"(mode));
  return mode;
}
void set_float_mode(FloatMode mode) { asm volatile("msr fpcr, %0" : : "r"(mode)); }
#else
using FloatMode = int;
FloatMode float_mode() { return 0; }
void set_float_mode(FloatMode) {}
#endif

// As long as it is there, the calling thread is a member, and computes as the region's caller does.
class Membership {
 public:
  Membership(Places& in, int member, FloatMode callers) : own_(float_mode()), callers_(callers) {
    places = &in, own_member = member;
    if (own_ != callers_) set_float_mode(callers_);
    in.settle(member);
  }
  Membership(const Membership&) = delete;
  ~Membership() {
    places = nullptr;
    if (own_ != callers_) set_float_mode(own_);
  }

 private:
  FloatMode own_, callers_;
};

// The region on threads of its own.
void parallel_on_own_threads(int threads, void (*body)(void*, int), void* context) {
  Places where(threads);
  const FloatMode mode = float_mode();
  const auto run = [&](int thread) {
    const Membership membership(where, thread, mode);
    body(context, thread);
  };
  // The members wait for each other: none begins before all are there.
  enum : unsigned { waiting, all_there, gone };
  Awaited state;
  std::vector<std::thread> others;
  const auto join = [&] {
    for (std::thread& other : others) other.join();
  };
  try {
    for (int thread = 1; thread < threads; ++thread) {
      others.emplace_back([&, thread] {
        state.wait_past(waiting);
        if (state.value() == all_there) run(thread);
      });
    }
  } catch (...) {
    state.set(gone);
    join();
    throw;
  }
  state.set(all_there);
  run(0);
  join();
}

// A child of fork() has the caller's thread alone, yet OpenMP takes its pool to be there and would wait for
// it for ever: the child runs serially.
std::atomic<bool> forked{false};
[[maybe_unused]] const int watching =
    pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });

}  // namespace

Places::Places(int members) : members_(members) {
  for (int m = 0; m < members; ++m) processor_[m].store(-1, std::memory_order_relaxed);
}

bool Places::may_crowd(int member) const {
  return is_taken(-1, member) || is_taken(processor_[member].load(std::memory_order_relaxed), member);
}

void Places::leave(int member) { processor_[member].store(-1, std::memory_order_relaxed); }

void Places::settle(int member) {
  const int here = sched_getcpu();
  const bool crowded = here >= 0 && is_taken(here, member);
  processor_[member].store(crowded ? -1 : here, std::memory_order_relaxed);
  if (!crowded) return;
  if (moves_.fetch_add(1, std::memory_order_relaxed) < kMostMoves * members_) move(member);
  processor_[member].store(sched_getcpu(), std::memory_order_relaxed);
}

bool Places::is_taken(int processor, int but_by) const {
  for (int m = 0; m < members_; ++m) {
    if (m != but_by && processor_[m].load(std::memory_order_relaxed) == processor) return true;
  }
  return false;
}

void Places::move(int member) const {
  cpu_set_t all;
  if (sched_getaffinity(0, sizeof all, &all) != 0) return;
  cpu_set_t free = all;
  for (int m = 0; m < members_; ++m) {
    const int taken = processor_[m].load(std::memory_order_relaxed);
    if (m != member && taken >= 0) CPU_CLR(size_t(taken), &free);
  }
  if (CPU_COUNT(&free) > 0 && sched_setaffinity(0, sizeof free, &free) == 0)
    sched_setaffinity(0, sizeof all, &all);
}

void Awaited::set(unsigned value) {
  // In one order with the sleepers' registration: either they see the value, or they are seen here.
  value_.store(value, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) futex(value_, FUTEX_WAKE, INT_MAX);
}

void Awaited::wait_past(unsigned before) {
  const auto is_past = [&](unsigned value) { return int(value - before) > 0; };
  const auto spin = [&](int most) {
    for (int spins = 0; spins < most; ++spins) {
      if (is_past(value_.load(std::memory_order_acquire))) return true;
      pause_cpu();
    }
    return false;
  };
  if (spin(kSpins)) return;
  if (places && places->may_crowd(own_member)) {
    nap();
    if (spin(kSpinsAfterNap)) return;
  }
  if (places) places->leave(own_member);
  const auto start = Scarcity::Clock::now();
  sleepers_.fetch_add(1, std::memory_order_seq_cst);
  for (unsigned value; !is_past(value = value_.load(std::memory_order_seq_cst));)
    futex(value_, FUTEX_WAIT, value);
  sleepers_.fetch_sub(1, std::memory_order_relaxed);
  if (places) places->settle(own_member);
  if (asleep_) {
    const std::chrono::nanoseconds slept = Scarcity::Clock::now() - start;
    asleep_->fetch_add(slept.count(), std::memory_order_relaxed);
  }
}

void Barrier::wait() {
  if (members_ == 1) return;
  const unsigned epoch = epoch_.value();
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == members_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    epoch_.set(epoch + 1);
    return;
  }
  epoch_.wait_past(epoch);
}

namespace {

// Steps of more than this are longer than it takes to fall asleep and to wake up: with them to share the
// processors is the better way.
constexpr double kShortStep = 200;  // microseconds
// Of a call's time, that its threads may sleep; and what they may at any rate, since a thread that nobody
// needed for a while takes some time to wake up. Who shares a processor waits for milliseconds.
constexpr double kMostAsleep = 0.25;
constexpr std::chrono::microseconds kAnyAsleep{500};
// How long calls run on one thread after two in a row that lost their time, and at most, where all that are
// tried do.
constexpr std::chrono::milliseconds kLeastPause{20}, kMostPause{500};

std::atomic<Scarcity::Clock::rep> scarce_until{0};
std::atomic<int> scarce_in_a_row{0};
std::atomic<Index> scarce_calls{0};

}  // namespace

bool Scarcity::is_now() {
  const Clock::rep until = scarce_until.load(std::memory_order_relaxed);
  return until != 0 && Clock::now().time_since_epoch().count() < until;
}

int Scarcity::threads(int wanted) { return wanted > 1 && is_now() ? 1 : wanted; }

Index Scarcity::losses() { return scarce_calls.load(std::memory_order_relaxed); }

void Scarcity::report(double step_us, std::chrono::nanoseconds took, std::chrono::nanoseconds asleep) {
  const double most = std::max(std::chrono::nanoseconds(kAnyAsleep) * 1.0, took * kMostAsleep).count();
  if (step_us >= kShortStep || double(asleep.count()) <= most) {
    if (scarce_in_a_row.load(std::memory_order_relaxed) != 0) scarce_in_a_row = 0, scarce_until = 0;
    return;
  }
  ++scarce_calls;
  // One such call may have met a processor that was asleep, or lent out for a moment: that is over by now.
  const int before = std::min(scarce_in_a_row++, 10);
  if (before == 0) return;
  const std::chrono::nanoseconds most_pause = kMostPause, next = kLeastPause * (1 << before) / 2;
  const std::chrono::nanoseconds pause = std::max(10 * took, std::min(next, most_pause));
  scarce_until = (Clock::now() + pause).time_since_epoch().count();
  if (logs_plans()) {
    std::fprintf(stderr, "rnnfused: processors are scarce: slept %lld us of %lld; one thread for %lld ms\n",
                 (long long)(asleep.count() / 1000), (long long)(took.count() / 1000),
                 (long long)(pause.count() / 1000000));
  }
}

#ifdef RNNFUSED_STD_THREADS

int usable_threads() {
  cpu_set_t set;
  CPU_ZERO(&set);
  // The set is too small for machines of more than 1,024 processors.
  const int n = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set)
                                                             : int(std::thread::hardware_concurrency());
  return std::clamp(n, 1, kMaxThreads);
}

// ThreadSanitizer does not see libgomp's synchronisation; this backend is what its build runs.
void parallel(int threads, void (*body)(void*, int), void* context) {
  if (threads == 1) return body(context, 0);
  parallel_on_own_threads(threads, body, context);
}

#else

}  // namespace rnnfused

#include <omp.h>

namespace rnnfused {
namespace {

// Processors that OpenMP has for its threads. Not those that the calling thread may run on: where threads are
// bound (OMP_PROC_BIND, OMP_PLACES), that is its own place alone.
int processors() {
  static const int bound = [] {
    if (omp_get_proc_bind() == omp_proc_bind_false) return 0;
    int n = 0;
    for (int place = 0; place < omp_get_num_places(); ++place) n += omp_get_place_num_procs(place);
    return n;
  }();
  const int all = omp_get_num_procs();
  return std::clamp(bound > 0 ? std::min(bound, all) : all, 1, kMaxThreads);
}

}  // namespace

int usable_threads() {
  if (forked.load(std::memory_order_relaxed) || omp_in_parallel() || omp_get_max_active_levels() < 1)
    return 1;
  return std::min(processors(), omp_get_thread_limit());
}

void parallel(int threads, void (*body)(void*, int), void* context) {
  if (threads == 1) return body(context, 0);
  // The members wait for each other, so that a smaller team than asked for would never finish. A runtime
  // whose limits count the threads of the whole process may give one all the same.
  bool too_few = false;
  const int dynamic = omp_get_dynamic();
  omp_set_dynamic(0);
  // The caller joins the others by itself before it comes to OpenMP's own end of a region, which waits awake.
  std::atomic<int> others{threads - 1};
  Awaited joined;
  Places where(threads);
  const FloatMode mode = float_mode();
#pragma omp parallel num_threads(threads)
  {
    if (omp_get_num_threads() == threads) {
      const int thread = omp_get_thread_num();
      {
        const Membership membership(where, thread, mode);
        body(context, thread);
        if (thread == 0) joined.wait_past(0);
      }
      if (thread != 0 && others.fetch_sub(1, std::memory_order_acq_rel) == 1) joined.set(1);
    } else if (omp_get_thread_num() == 0) {
      too_few = true;
    }
  }
  omp_set_dynamic(dynamic);
  if (!too_few) return;
  if (logs_plans())
    std::fprintf(stderr, "rnnfused: OpenMP has no %d threads now: a call on threads of its own\n", threads);
  parallel_on_own_threads(threads, body, context);
}

#endif

}  // namespace rnnfused
