// The parallel region and the barrier, also with more threads than processors.
#include <doctest/doctest.h>
#include <sched.h>

#include <chrono>
#include <functional>
#include <thread>
#include <vector>

#include "cpu/threads.h"

namespace rnnfused {
namespace {

template <class Body>
void run(int threads, Body body) {
  parallel(threads, [](void* context, int thread) { (*static_cast<Body*>(context))(thread); }, &body);
}

TEST_CASE("every thread runs once, the caller as thread 0") {
  for (int threads : {1, 2, 3, 8}) {
    std::vector<int> calls(size_t(threads), 0);
    std::vector<std::thread::id> ids(calls.size());
    run(threads,
        [&](int thread) { ++calls[size_t(thread)], ids[size_t(thread)] = std::this_thread::get_id(); });
    for (int n : calls) CHECK(n == 1);
    CHECK((ids[0] == std::this_thread::get_id()));
    for (size_t i = 1; i < ids.size(); ++i) CHECK((ids[i] != ids[0]));
  }
}

#ifdef RNNFUSED_OPENMP_THREADS
extern "C" void omp_set_max_active_levels(int);
extern "C" int omp_get_max_active_levels();

TEST_CASE("where OpenMP gives too few threads the region has threads of its own") {
  const int levels = omp_get_max_active_levels();
  omp_set_max_active_levels(0);
  Barrier barrier(3);
  std::vector<int> calls(3, 0);
  run(3, [&](int thread) {
    barrier.wait();  // for ever, if there are fewer
    ++calls[size_t(thread)];
  });
  omp_set_max_active_levels(levels);
  CHECK((calls == std::vector<int>{1, 1, 1}));
}
#endif

// Every member writes what belongs to it without any other synchronisation; after the barrier all must see
// all of it, and no member may be a round ahead.
TEST_CASE("a barrier holds the members together and publishes what they wrote") {
  for (int members : {1, 2, 3, 4, 7}) {
    Barrier barrier(members);
    std::vector<long> written(size_t(members), -1), wrong(size_t(members), 0);
    run(members, [&](int member) {
      for (long round = 0; round < 300; ++round) {
        written[size_t(member)] = round;
        barrier.wait();
        for (long value : written) wrong[size_t(member)] += value != round;
        barrier.wait();
      }
    });
    for (long n : wrong) CHECK(n == 0);
  }
}

TEST_CASE("groups with barriers of their own do not wait for each other") {
  Barrier barriers[] = {Barrier(2), Barrier(2)};
  std::vector<long> rounds(4, 0);
  run(4, [&](int thread) {
    const int group = thread / 2;
    for (long round = 0; round < (group == 0 ? 50 : 200); ++round) {
      ++rounds[size_t(thread)];
      barriers[group].wait();
    }
  });
  CHECK((rounds == std::vector<long>{50, 50, 200, 200}));
}

TEST_CASE("two callers at once have regions of their own") {
  const auto caller = [](long& sum) {
    for (int i = 0; i < 50; ++i) {
      Barrier barrier(2);
      long parts[2] = {};
      run(2, [&](int thread) {
        parts[thread] = thread + 1;
        barrier.wait();
        if (thread == 0) sum += parts[0] + parts[1];
      });
    }
  };
  long sums[2] = {};
  std::thread other(caller, std::ref(sums[1]));
  caller(sums[0]);
  other.join();
  CHECK(sums[0] == 150);
  CHECK(sums[1] == 150);
}

TEST_CASE("who waits long falls asleep, is woken, and says how long it slept") {
  using std::chrono::milliseconds;
  Asleep asleep{0};
  Barrier barrier(3, &asleep);
  Progress progress(&asleep);
  std::vector<int> rounds(3, 0);
  run(3, [&](int thread) {
    for (int round = 1; round <= 4; ++round) {
      if (thread == round % 3) std::this_thread::sleep_for(milliseconds(3));
      rounds[size_t(thread)] = round;
      barrier.wait();
      if (thread == 0) {
        std::this_thread::sleep_for(milliseconds(1));
        progress.set(round);
      } else {
        progress.wait_for(round);
      }
      for (const int other : rounds) CHECK(other >= round);
      barrier.wait();
    }
  });
  CHECK(asleep.load() > std::chrono::nanoseconds(milliseconds(4)).count());
}

TEST_CASE("what is awaited may have wrapped around") {
  Awaited number;
  number.set(unsigned(-2));
  std::thread other([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    number.set(1);
  });
  number.wait_past(unsigned(-1));
  CHECK(number.value() == 1);
  other.join();
}

TEST_CASE("a member that is where another one is moves, and may run where it might before") {
  cpu_set_t before, after;
  REQUIRE(sched_getaffinity(0, sizeof before, &before) == 0);
  // Two members on one thread are on one processor; the system may move it, too, and so it is tried again.
  bool parted = false;
  for (int attempt = 0; attempt < 20 && !parted; ++attempt) {
    Places two(2);
    CHECK(two.may_crowd(0));  // the other is not there yet
    two.settle(0);
    const int first = sched_getcpu();
    two.settle(1);
    parted = sched_getcpu() != first;
    REQUIRE(sched_getaffinity(0, sizeof after, &after) == 0);
    CHECK(CPU_EQUAL(&before, &after));
  }
  CHECK(parted == (CPU_COUNT(&before) > 1));
  Places places(3);
  places.settle(0), places.settle(1);
  CHECK(places.may_crowd(0));  // the third is not there yet
  places.settle(2);
  if (CPU_COUNT(&before) > 2) CHECK(!places.may_crowd(0));
  places.leave(1);
  CHECK(places.may_crowd(0));
  // However often they meet: no more than some moves of a region.
  for (int i = 0; i < 100; ++i) places.settle(i % 3);
  REQUIRE(sched_getaffinity(0, sizeof after, &after) == 0);
  CHECK(CPU_EQUAL(&before, &after));
}

TEST_CASE("a thread that may run on one processor stays there") {
  cpu_set_t before, one, after;
  REQUIRE(sched_getaffinity(0, sizeof before, &before) == 0);
  CPU_ZERO(&one);
  CPU_SET(size_t(sched_getcpu()), &one);
  REQUIRE(sched_setaffinity(0, sizeof one, &one) == 0);
  Places places(2);
  places.settle(0), places.settle(1);
  REQUIRE(sched_getaffinity(0, sizeof after, &after) == 0);
  CHECK(CPU_EQUAL(&one, &after));
  REQUIRE(sched_setaffinity(0, sizeof before, &before) == 0);
}

TEST_CASE("calls of short steps that lost their time make the next ones run on one thread, for a while") {
  using std::chrono::milliseconds;
  const Index before = Scarcity::losses();
  Scarcity::report(10, milliseconds(4), milliseconds(0));
  CHECK(Scarcity::threads(4) == 4);
  Scarcity::report(1000, milliseconds(4), milliseconds(3));               // long steps
  Scarcity::report(10, milliseconds(4), std::chrono::microseconds(400));  // hardly any time
  CHECK(Scarcity::threads(4) == 4);
  CHECK(Scarcity::losses() == before);
  Scarcity::report(10, milliseconds(4), milliseconds(3));  // once: that may be over by now
  CHECK(!Scarcity::is_now());
  CHECK(Scarcity::threads(4) == 4);
  CHECK(Scarcity::losses() == before + 1);
  Scarcity::report(10, milliseconds(4),
                   milliseconds(3));  // and again: for ten times as long as the call took
  std::this_thread::sleep_for(milliseconds(6));
  CHECK(Scarcity::is_now());
  CHECK(Scarcity::threads(4) == 1);
  std::this_thread::sleep_for(milliseconds(60));
  CHECK(Scarcity::threads(4) == 4);
  Scarcity::report(10, milliseconds(4), milliseconds(0));
}

TEST_CASE("a region can be had of one thread at least") {
  CHECK(usable_threads() >= 1);
  CHECK(usable_threads() <= kMaxThreads);
}

}  // namespace
}  // namespace rnnfused
