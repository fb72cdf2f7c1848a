#include "emulation/meeting.h"

#include <cstring>

#include "emulation/machine.h"

namespace rnnfused {
namespace emulation {

void Meeting::meet(Thread& thread, const char* reason, Site site, bool orders, Exchange exchange) {
  Grid& grid = *thread.block->cluster->grid;
  thread.site = site;
  if (exited_ != 0) {
    throw Fault(FaultKind::barrier_divergence,
                thread.str() + " is in " + reason + " at " + site.str() + ", but " + std::to_string(exited_) +
                    " of " + std::to_string(members_.size()) + " threads have exited, the last one after " +
                    last_exit_.str());
  }
  if (waiting_.empty()) {
    reason_ = reason;
    site_ = site;
  } else if (std::strcmp(reason, reason_) != 0 || !(site == site_)) {
    throw Fault(FaultKind::barrier_divergence, thread.str() + " is in " + reason + " at " + site.str() +
                                                   ", but " + waiting_.front()->str() + " is in " + reason_ +
                                                   " at " + site_.str());
  }
  if (orders) grid.publish(thread).add_to(clocks_);
  waiting_.push_back(&thread);
  if (waiting_.size() < members_.size()) {
    grid.wait(thread, reason);
    return;
  }
  if (exchange) exchange(members_);
  {
    const ClockPtr known = orders ? clocks_.finish() : nullptr;
    for (Thread* other : waiting_) {
      grid.learn(*other, known);
      if (other != &thread) grid.wake(*other);
    }
  }
  waiting_.clear();
  // Here and wherever a fiber suspends: it may never be resumed, and nothing on its stack may need a
  // destructor.
  grid.may_switch(thread);
}

void Meeting::leave(Thread& thread) {
  ++exited_;
  last_exit_ = thread.site;
  if (!waiting_.empty()) {
    throw Fault(FaultKind::barrier_divergence, thread.str() + " exited after " + thread.site.str() +
                                                   ", but " + waiting_.front()->str() + " waits in " +
                                                   reason_ + " at " + site_.str());
  }
}

}  // namespace emulation
}  // namespace rnnfused
