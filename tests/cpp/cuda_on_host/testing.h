// What the emulator's tests share: every schedule, and what a report must say.
#pragma once

#include <doctest/doctest.h>

#include <initializer_list>
#include <set>
#include <string>

#include "emulation/fault.h"
#include "emulation/schedule.h"

namespace rnnfused {
namespace emulation {

// Calls `body()` under every policy and delivery, `seeds` times each.
template <class Body>
void under_all_schedules(int seeds, Body body) {
  for (Policy policy : {Policy::round_robin, Policy::random, Policy::priorities}) {
    for (Delivery delivery : {Delivery::eager, Delivery::random, Delivery::late}) {
      for (int seed = 1; seed <= seeds; ++seed) {
        Schedule schedule;
        schedule.seed = uint64_t(seed);
        schedule.policy = policy;
        schedule.delivery = delivery;
        const ScopedSchedule scope(schedule);
        CAPTURE(int(policy));
        CAPTURE(int(delivery));
        CAPTURE(seed);
        body();
      }
    }
  }
}

// The lines of the test's kernels that a fault is planted in, or that it lets collide.
inline std::set<int>& planted_lines() {
  static std::set<int> lines;
  return lines;
}
#define PLANTED(expression) (::rnnfused::emulation::planted_lines().insert(__LINE__), expression)

// Under every schedule `body` must end by a fault of one of these kinds, whose report names at least `lines`
// of the planted lines of `file`.
template <class Body>
void must_report(std::initializer_list<FaultKind> kinds, const std::string& file, size_t lines, Body body) {
  under_all_schedules(3, [&] {
    planted_lines().clear();
    std::string report = "no fault";
    bool expected = false;
    try {
      body();
    } catch (const Fault& fault) {
      report = fault.what();
      for (FaultKind kind : kinds) expected = expected || fault.kind() == kind;
    }
    CAPTURE(report);
    CHECK(expected);
    size_t named = 0;
    for (int line : planted_lines()) {
      const std::string place = file + ":" + std::to_string(line);
      const size_t at = report.find(place);
      named += at != std::string::npos &&
               (at + place.size() == report.size() ||
                report.find_first_of("0123456789", at + place.size()) != at + place.size());
    }
    CHECK(named >= lines);
  });
}

}  // namespace emulation
}  // namespace rnnfused
