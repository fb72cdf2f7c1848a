#include "emulation/mbarrier.h"

#include <algorithm>

#include "emulation/machine.h"

namespace rnnfused {
namespace emulation {
namespace {

constexpr uint32_t kMaxCount = (1u << 20) - 1;  // of arrivals, and of bytes

std::string name_of(const Block& block, std::ptrdiff_t offset) {
  return "mbarrier at byte " + std::to_string(offset) + " of block " + std::to_string(block.number);
}

[[noreturn]] void misuse(FaultKind kind, const Thread& thread, const Block& block, std::ptrdiff_t offset,
                         Site site, const std::string& what) {
  const auto at = block.mbarriers.find(offset);
  throw Fault(kind, thread.str() + " at " + site.str() + ": " + name_of(block, offset) + " " + what +
                        (at == block.mbarriers.end() ? "" : " (" + at->second.str() + ")"));
}

MbarrierState& find(Thread& thread, MbarrierPlace place, const char* what, Site site) {
  checked_shared(thread, place.block(), place.offset(), sizeof(cuda::Mbarrier), site, what);
  Block& block = *place.block();
  const auto at = block.mbarriers.find(place.offset());
  const auto refuse = [&](FaultKind kind, const std::string& why) {
    misuse(kind, thread, block, place.offset(), site, why);
  };
  if (at == block.mbarriers.end()) refuse(FaultKind::mbarrier_state, "was not initialised");
  MbarrierState& mbarrier = at->second;
  if (thread.block->cluster->grid->settings().races && !thread.knows(mbarrier.init.actor, mbarrier.init.time))
    refuse(FaultKind::race, "is used with no order after its initialisation at " + mbarrier.init.site.str());
  if (&block != thread.block && !mbarrier.fenced)
    refuse(FaultKind::mbarrier_state,
           "is used by a peer, with no fence_mbarrier_init after " + mbarrier.init.site.str());
  return mbarrier;
}

void end_phase_if_complete(Grid& grid, Block& block, MbarrierState& mbarrier) {
  if (mbarrier.pending != 0 || mbarrier.tx != 0) return;
  mbarrier.pending = mbarrier.count;
  ++mbarrier.phase;
  mbarrier.arriving.set(block.actor_of_mbarrier(mbarrier), mbarrier.phase);
  mbarrier.completed = mbarrier.arriving.finish();
  for (Thread* thread : mbarrier.waiting) grid.wake(*thread);
  mbarrier.waiting.clear();
}

// Whether `phase` has ended; a fault where the parity of a wait could not tell.
bool ended(Thread& thread, MbarrierPlace place, const MbarrierState& mbarrier, uint32_t phase, Site site) {
  if (phase != mbarrier.phase && phase + 1 != mbarrier.phase)
    misuse(FaultKind::mbarrier_phase, thread, *place.block(), place.offset(), site,
           "is waited on for phase " + std::to_string(phase));
  return phase != mbarrier.phase;
}

MbarrierState& find_own(Thread& thread, MbarrierPlace place, const char* what, Site site) {
  MbarrierState& mbarrier = find(thread, place, what, site);
  if (place.block() != thread.block)
    misuse(FaultKind::mbarrier_state, thread, *place.block(), place.offset(), site,
           "belongs to a peer: a block can only wait on its own");
  return mbarrier;
}

}  // namespace

std::string MbarrierState::str() const {
  return "phase " + std::to_string(phase) + " in progress, " + std::to_string(pending) + " of " +
         std::to_string(count) + " arrivals pending, tx-count " + std::to_string(tx) + " bytes";
}

void Published::add_to(ClockBuilder& builder) const {
  builder.join(clock);
  if (time != 0) builder.set(actor, time);
  if (copies != 0) builder.set(engine, copies);
}

void init_mbarrier(MbarrierPlace place, unsigned count, Site site) {
  Thread& thread = running();
  SharedMemory& memory =
      checked_shared(thread, place.block(), place.offset(), sizeof(cuda::Mbarrier), site, "initialises");
  Block& block = *thread.block;
  if (place.block() != &block || count == 0 || count > kMaxCount || block.mbarriers.count(place.offset()))
    misuse(FaultKind::mbarrier_state, thread, *place.block(), place.offset(), site,
           "can not be initialised: it is a peer's, or it was before, or " + std::to_string(count) +
               " arrivals are none or too many");
  if (block.mbarriers.size() == kMaxMbarriers)
    throw Fault(FaultKind::launch, "too many mbarriers to emulate");
  // To plain accesses its bytes stay unwritten.
  memory.shadow.write_later(thread, size_t(place.offset()), sizeof(cuda::Mbarrier), thread.access(site));
  MbarrierState& mbarrier = block.mbarriers[place.offset()];
  mbarrier.number = uint32_t(block.mbarriers.size() - 1);
  mbarrier.count = mbarrier.pending = count;
  mbarrier.init = thread.access(site);
}

void fence_inits(Site site) {
  Thread& thread = running();
  thread.site = site;
  for (auto& entry : thread.block->mbarriers)
    if (entry.second.init.actor == thread.actor()) entry.second.fenced = true;
}

void arrive(MbarrierPlace place, uint32_t bytes, const char* what, Site site) {
  Thread& thread = running();
  Grid& grid = *thread.block->cluster->grid;
  MbarrierState& mbarrier = find(thread, place, what, site);
  if (mbarrier.pending == 0 || mbarrier.tx + int64_t(bytes) > int64_t(kMaxCount))
    misuse(FaultKind::mbarrier_state, thread, *place.block(), place.offset(), site,
           std::string("has no room for this ") + what);
  mbarrier.tx += bytes;
  --mbarrier.pending;
  grid.publish(thread).add_to(mbarrier.arriving);
  end_phase_if_complete(grid, *place.block(), mbarrier);
  grid.may_switch(thread);
}

bool test_phase(MbarrierPlace place, uint32_t phase, Site site) {
  Thread& thread = running();
  MbarrierState& mbarrier = find_own(thread, place, "tests", site);
  if (!ended(thread, place, mbarrier, phase, site)) return false;
  thread.block->cluster->grid->learn(thread, mbarrier.completed);
  return true;
}

void wait_for_phase(MbarrierPlace place, uint32_t phase, Site site) {
  Thread& thread = running();
  Grid& grid = *thread.block->cluster->grid;
  MbarrierState& mbarrier = find_own(thread, place, "waits on", site);
  if (!ended(thread, place, mbarrier, phase, site)) {
    mbarrier.waiting.push_back(&thread);
    grid.wait(thread, "mbarrier_wait");
    if (!ended(thread, place, mbarrier, phase, site)) throw std::logic_error("woken before the phase ended");
  }
  grid.learn(thread, mbarrier.completed);
}

void store_async(Block* target, std::ptrdiff_t offset, const void* value, size_t bytes, MbarrierPlace place,
                 Site site) {
  Thread& thread = running();
  Grid& grid = *thread.block->cluster->grid;
  SharedMemory& memory = checked_shared(thread, target, offset, bytes, site, "stores (st.async)");
  const MbarrierState& mbarrier = find(thread, place, "st_async", site);
  if (place.block() != target)
    misuse(FaultKind::mbarrier_state, thread, *place.block(), place.offset(), site,
           "is not in the block that is stored to");
  if (thread.block->cluster->blocks.size() == 1)
    throw Fault(FaultKind::launch, thread.str() + " calls st_async at " + site.str() +
                                       ", which PTX leaves undefined in a cluster of one block");
  const Access access = {target->actor_of_mbarrier(mbarrier), mbarrier.phase + 1, site, false};
  memory.shadow.write_later(thread, size_t(offset), bytes, access);
  // Neither end may exit before it knows the end of this phase.
  target->remote[access.actor] = access;
  thread.block->remote[access.actor] = access;

  {
    RemoteStore store = {thread.block, target, offset, place.offset(), {}, bytes, mbarrier.phase, access, {}};
    if (grid.settings().stores_publish) store.published = grid.publish(thread);
    std::memcpy(store.value, value, bytes);
    grid.store_later(store);
  }
  grid.may_switch(thread);
}

void RemoteStore::deliver(Grid& grid) const {
  std::memcpy(target->shared->bytes.get() + offset, value, bytes);
  target->shared->shadow.set_written(size_t(offset), bytes, true);
  MbarrierState& completes = target->mbarriers.at(mbarrier);
  if (completes.phase != phase)
    throw Fault(FaultKind::tx_count, name_of(*target, mbarrier) + ": the st.async at " + access.site.str() +
                                         " began in phase " + std::to_string(phase) +
                                         " and its bytes come in another (" + completes.str() + ")");
  completes.tx -= int64_t(bytes);
  published.add_to(completes.arriving);
  end_phase_if_complete(grid, *target, completes);
}

}  // namespace emulation
}  // namespace rnnfused
