// Threads that could run, and which of them does.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

#include "emulation/schedule.h"

namespace rnnfused {
namespace emulation {

struct Thread;

class Random {  // splitmix64
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  uint64_t below(uint64_t bound) { return next() % bound; }
  bool one_in(uint64_t n) { return below(n) == 0; }

 private:
  uint64_t state_;
};

class ReadyQueue {
 public:
  explicit ReadyQueue(Policy policy) : policy_(policy) {}
  bool empty() const { return size() == 0; }
  size_t size() const { return policy_ == Policy::round_robin ? turns_.size() : threads_.size(); }

  void push(Thread* thread, uint64_t priority) {
    if (policy_ == Policy::round_robin) {
      turns_.push_back(thread);
    } else {
      threads_.emplace_back(priority, thread);
      if (policy_ == Policy::priorities) std::push_heap(threads_.begin(), threads_.end());
    }
  }
  Thread* pop(Random& random) {
    Thread* thread;
    if (policy_ == Policy::round_robin) {
      thread = turns_.front();
      turns_.pop_front();
      return thread;
    }
    if (policy_ == Policy::priorities) {
      std::pop_heap(threads_.begin(), threads_.end());
    } else {
      std::swap(threads_[random.below(threads_.size())], threads_.back());
    }
    thread = threads_.back().second;
    threads_.pop_back();
    return thread;
  }
  // Only under priorities, and not when empty.
  uint64_t highest() const { return threads_.front().first; }

 private:
  Policy policy_;
  std::deque<Thread*> turns_;
  std::vector<std::pair<uint64_t, Thread*>> threads_;
};

}  // namespace emulation
}  // namespace rnnfused
