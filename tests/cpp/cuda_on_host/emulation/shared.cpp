#include "emulation/shared.h"

#include "emulation/machine.h"

namespace rnnfused {
namespace emulation {

Block* own_block() { return running().block; }

namespace {

// A peer's memory exists from when it surely runs until it exits.
void check_peer(Thread& thread, Block& peer, Site site) {
  const bool started =
      !thread.block->cluster->grid->settings().races || (thread.clock && thread.clock->chunk(peer.number));
  if (!started || peer.running == 0) {
    throw Fault(FaultKind::peer_not_running,
                thread.str() + " accesses the shared memory of block " + std::to_string(peer.number) +
                    " at " + site.str() +
                    (started ? ", which has exited" : ", and nothing told it that this block has started"));
  }
  peer.remote[thread.actor()] = thread.access(site);
}

}  // namespace

SharedMemory& checked_shared(Thread& thread, Block* block, std::ptrdiff_t offset, size_t bytes, Site site,
                             const char* what) {
  thread.site = site;
  const auto place = [&] {
    return thread.str() + " " + what + " " + std::to_string(bytes) + " bytes at byte " +
           std::to_string(offset) + " of " +
           (block ? std::to_string(block->shared->size) : "a null pointer") + " at " + site.str();
  };
  if (!block || offset < 0 || size_t(offset) + bytes > block->shared->size)
    throw Fault(FaultKind::shared_bounds, place());
  if (size_t(offset) % bytes != 0 && (bytes & (bytes - 1)) == 0) throw Fault(FaultKind::misaligned, place());
  if (block != thread.block) check_peer(thread, *block, site);
  return *block->shared;
}

void read_shared(Block* block, std::ptrdiff_t offset, void* value, size_t bytes, Site site) {
  Thread& thread = running();
  SharedMemory& memory = checked_shared(thread, block, offset, bytes, site, "reads");
  memory.shadow.read(thread, size_t(offset), bytes, thread.access(site));
  std::memcpy(value, memory.bytes.get() + offset, bytes);
}

void write_shared(Block* block, std::ptrdiff_t offset, const void* value, size_t bytes, Site site) {
  Thread& thread = running();
  SharedMemory& memory = checked_shared(thread, block, offset, bytes, site, "writes");
  memory.shadow.write(thread, size_t(offset), bytes, thread.access(site));
  std::memcpy(memory.bytes.get() + offset, value, bytes);
}

}  // namespace emulation
}  // namespace rnnfused
