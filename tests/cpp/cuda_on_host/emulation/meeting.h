// A barrier of a fixed set of threads: a warp's collectives, a block's, a cluster's and a grid's barrier.
#pragma once

#include <vector>

#include "emulation/clock.h"
#include "emulation/fault.h"

namespace rnnfused {
namespace emulation {

struct Thread;

class Meeting {
 public:
  // With all threads there, in the order of their numbers: the exchange of what they brought.
  using Exchange = void (*)(const std::vector<Thread*>& threads);

  void add_member(Thread& thread) { members_.push_back(&thread); }
  const std::vector<Thread*>& members() const { return members_; }

  // Waits for all members, who must all come for the same reason from the same line. Where `orders` is set,
  // what each did before is known to all afterwards.
  void meet(Thread& thread, const char* reason, Site site, bool orders, Exchange exchange = nullptr);
  // A member that exits can not come any more.
  void leave(Thread& thread);

 private:
  std::vector<Thread*> members_;
  std::vector<Thread*> waiting_;
  const char* reason_ = nullptr;
  Site site_;
  unsigned exited_ = 0;
  Site last_exit_;
  ClockBuilder clocks_;
};

}  // namespace emulation
}  // namespace rnnfused
