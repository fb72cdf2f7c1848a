#include "emulation/async_copy.h"

#include <algorithm>

#include "emulation/global.h"
#include "emulation/machine.h"

namespace rnnfused {
namespace emulation {
namespace {

void carry_out(Block& block, const Copy& copy) {
  unsigned char* destination = block.shared->bytes.get() + copy.offset;
  std::memset(destination, 0, copy.bytes);
  if (copy.valid) std::memcpy(destination, copy.source, copy.valid);
  block.shared->shadow.set_written(size_t(copy.offset), copy.bytes, true);
}

}  // namespace

void CopyQueue::wait(Block& block, uint32_t newest, bool open) {
  const uint32_t groups = group_ + (open ? 1 : 0);
  const uint32_t ended = groups - std::min(newest, groups);
  auto at = in_flight_.begin();
  for (; at != in_flight_.end() && at->group < ended; ++at) {
    carry_out(block, *at);
    known_ = at->time;
  }
  in_flight_.erase(in_flight_.begin(), at);
}

void issue_copy(Block* block, std::ptrdiff_t offset, const void* source, size_t bytes, size_t valid,
                Site site) {
  Thread& thread = running();
  Grid& grid = *thread.block->cluster->grid;
  SharedMemory& memory = checked_shared(thread, block, offset, bytes, site, "copies (cp.async)");
  if (block != thread.block)
    throw Fault(FaultKind::shared_bounds,
                thread.str() + " copies into a peer's shared memory by cp.async at " + site.str());
  if (reinterpret_cast<uintptr_t>(source) % bytes != 0)
    throw Fault(FaultKind::misaligned, thread.str() + " copies " + std::to_string(bytes) +
                                           " bytes from a misaligned source at " + site.str());
  if (valid > bytes)
    throw Fault(FaultKind::global_bounds,
                thread.str() + " copies more bytes than the instruction moves at " + site.str());
  check_global(thread, source, valid, site, AccessMode::read);
  // Whatever the source is, it must be readable now: the copy itself may come when nobody can be blamed.
  const auto* first = static_cast<const volatile unsigned char*>(source);
  if (valid) (void)first[0], (void)first[valid - 1];

  const Copy copy = {thread.copies.next_time(), thread.copies.group(), offset, source, bytes, valid, site};
  memory.shadow.write_later(thread, size_t(offset), bytes, {thread.engine(), copy.time, site, false});
  if (grid.settings().delivery == Delivery::eager ||
      (grid.settings().delivery == Delivery::random && grid.random().one_in(2))) {
    carry_out(*block, copy);
  }
  thread.copies.add(copy);
}

void commit_copies(Site site) {
  Thread& thread = running();
  thread.site = site;
  thread.copies.commit();
}

void wait_for_copies(uint32_t newest, bool open, Site site) {
  Thread& thread = running();
  thread.site = site;
  thread.copies.wait(*thread.block, newest, open);
}

}  // namespace emulation
}  // namespace rnnfused
