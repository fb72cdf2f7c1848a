// Stacks that a thread of the operating system switches between.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace rnnfused {
namespace emulation {

struct FiberContext;  // what a switch saves

// One stack, on which functions run one after another.
class Fiber {
 public:
  using Entry = void (*)(void*);
  explicit Fiber(size_t number);  // each another one
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // What the next resume() begins. The last entry must have returned.
  void assign(Entry entry, void* argument);
  // From the OS thread's own stack: runs the fiber until it suspends or its entry returns.
  void resume();
  // From the fiber: back to where resume() was called.
  void suspend();
  // Forgets a suspended entry. Nothing on its stack is destroyed.
  void abandon();
  bool guards(const void* address) const;  // whether the inaccessible page below the stack holds it

 private:
  static void main(void* self);
  char* stack() const;
  void* memory_;
  std::unique_ptr<FiberContext> context_;
  size_t
      colour_;  // left out at the top: stacks that all began at the same cache lines would evict each other
  Entry entry_ = nullptr;
  void* argument_ = nullptr;
};

// Fibers are kept for reuse: the last one given back is the first one taken, while it is warm.
class FiberPool {
 public:
  Fiber* take();
  void give_back(Fiber* fiber) { free_.push_back(fiber); }
  const std::vector<std::unique_ptr<Fiber>>& all() const { return all_; }

 private:
  std::vector<std::unique_ptr<Fiber>> all_;
  std::vector<Fiber*> free_;
};

}  // namespace emulation
}  // namespace rnnfused
