#include "emulation/atomics.h"

#include "emulation/machine.h"

namespace rnnfused {
namespace emulation {
namespace {

constexpr unsigned kMaxPolls = 100000;

Thread& begin_access(const void* address, size_t bytes, Site site, AccessMode mode) {
  Thread& thread = running();
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
    throw Fault(FaultKind::misaligned, thread.str() + " accesses a misaligned word at " + site.str());
  check_global(thread, address, bytes, site, mode, true);
  return thread;
}

Grid& grid_of(Thread& thread) { return *thread.block->cluster->grid; }

}  // namespace

void load_word(const void* address, void* value, size_t bytes, Order order, Site site) {
  Thread& thread = begin_access(address, bytes, site, AccessMode::read);
  if (thread.polled != address) thread.polls = 0;
  thread.polled = address;
  if (++thread.polls > kMaxPolls)
    throw Fault(FaultKind::livelock, thread.str() + " spins at " + site.str() + " outside of poll_until");
  std::memcpy(value, address, bytes);
  Grid& grid = grid_of(thread);
  const ClockPtr clock = grid.clock_at(address);
  if (order == Order::synchronising) {
    grid.learn(thread, clock);
  } else {
    thread.seen = join(thread.seen, clock);
  }
}

void store_word(void* address, const void* value, size_t bytes, Order order, Site site) {
  Thread& thread = begin_access(address, bytes, site, AccessMode::write);
  std::memcpy(address, value, bytes);
  Grid& grid = grid_of(thread);
  if (order == Order::synchronising) {
    ClockBuilder clock;
    grid.publish(thread).add_to(clock);
    grid.clock_at(address) = clock.finish();
  } else {
    grid.clock_at(address) = thread.fenced;
  }
  grid.may_switch(thread);
}

uint32_t add_word(uint32_t* address, uint32_t value, Order order, Site site) {
  Thread& thread = begin_access(address, sizeof value, site, AccessMode::read);
  check_global(thread, address, sizeof value, site, AccessMode::write, true);
  const uint32_t before = *address;
  *address = before + value;
  Grid& grid = grid_of(thread);
  // Whoever acquires from an addition acquires from those before it as well.
  ClockPtr& clock = grid.clock_at(address);
  if (order == Order::synchronising) {
    grid.learn(thread, clock);
    ClockBuilder builder;
    builder.join(clock);
    grid.publish(thread).add_to(builder);
    clock = builder.finish();
  } else {
    thread.seen = join(thread.seen, clock);
    clock = join(clock, thread.fenced);
  }
  grid.may_switch(thread);
  return before;
}

void fence(Site site) {
  Thread& thread = running();
  thread.site = site;
  Grid& grid = grid_of(thread);
  grid.learn(thread, thread.seen);
  thread.seen = nullptr;
  ClockBuilder builder;
  grid.publish(thread).add_to(builder);
  thread.fenced = builder.finish();
}

void poll_again(Site site) {
  Thread& thread = running();
  thread.polls = 0;
  grid_of(thread).poll_failed(thread, site);
}

void polled(Site site) {
  Thread& thread = running();
  thread.site = site;
  thread.polls = 0;
  grid_of(thread).progress();
}

void trap_at(Site site) { throw Fault(FaultKind::trap, running().str() + " at " + site.str()); }

}  // namespace emulation
}  // namespace rnnfused
