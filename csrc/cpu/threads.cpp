#include "cpu/threads.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <thread>
#include <vector>

namespace rnnfused {
namespace {

// About 20 us: longer than any step that is worth sharing takes to even out, short enough to lose little when
// the machine is oversubscribed and the other member waits for a processor.
constexpr int kSpins = 1000;

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class Condition>
void spin_until(Condition holds) {
  for (int spins = 0; !holds(); ++spins) {
    if (spins < kSpins) {
      pause_cpu();
    } else {
      sched_yield();
    }
  }
}

int processors() {
  cpu_set_t set;
  CPU_ZERO(&set);
  // The set is too small for machines of more than 1,024 processors.
  const int n = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set)
                                                             : int(std::thread::hardware_concurrency());
  return std::clamp(n, 1, kMaxThreads);
}

// A child of fork() has the caller's thread alone, yet OpenMP takes its pool to be there and would wait for
// it for ever: the child runs serially.
std::atomic<bool> forked{false};
[[maybe_unused]] const int watching =
    pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });

}  // namespace

void Barrier::wait() {
  if (members_ == 1) return;
  const unsigned epoch = epoch_.load(std::memory_order_relaxed);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == members_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    epoch_.store(epoch + 1, std::memory_order_release);
    return;
  }
  spin_until([&] { return epoch_.load(std::memory_order_acquire) != epoch; });
}

void Progress::wait_for(Index steps) const {
  spin_until([&] { return done_.load(std::memory_order_acquire) >= steps; });
}

#ifdef RNNFUSED_STD_THREADS

int usable_threads() { return processors(); }

// ThreadSanitizer does not see libgomp's synchronisation; this backend is what its build runs.
void parallel(int threads, void (*body)(void*, int), void* context) {
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(body, context, thread);
  body(context, 0);
  for (std::thread& other : others) other.join();
}

#else

}  // namespace rnnfused

#include <omp.h>

namespace rnnfused {

int usable_threads() {
  if (forked.load(std::memory_order_relaxed) || omp_in_parallel() || omp_get_max_active_levels() < 1)
    return 1;
  return std::min(processors(), omp_get_thread_limit());
}

void parallel(int threads, void (*body)(void*, int), void* context) {
  if (threads == 1) return body(context, 0);
  // The members wait for each other, so that a smaller team than asked for would never finish.
  const int dynamic = omp_get_dynamic();
  omp_set_dynamic(0);
#pragma omp parallel num_threads(threads)
  {
    if (omp_get_num_threads() == threads) {
      body(context, omp_get_thread_num());
    } else if (omp_get_thread_num() == 0) {
      __builtin_trap();
    }
  }
  omp_set_dynamic(dynamic);
}

#endif

}  // namespace rnnfused
