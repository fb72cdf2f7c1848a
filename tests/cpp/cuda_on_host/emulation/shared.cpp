#include "emulation/shared.h"

#include "emulation/machine.h"

namespace rnnfused {
namespace emulation {

Block* own_block() { return running().block; }

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
  return *block->shared;
}

void read_shared(Block* block, std::ptrdiff_t offset, void* value, size_t bytes, Site site) {
  Thread& thread = running();
  SharedMemory& memory = checked_shared(thread, block, offset, bytes, site, "reads");
  memory.shadow.read(thread, size_t(offset), bytes, {thread.actor(), thread.now, site});
  std::memcpy(value, memory.bytes.get() + offset, bytes);
}

void write_shared(Block* block, std::ptrdiff_t offset, const void* value, size_t bytes, Site site) {
  Thread& thread = running();
  SharedMemory& memory = checked_shared(thread, block, offset, bytes, site, "writes");
  memory.shadow.write(thread, size_t(offset), bytes, {thread.actor(), thread.now, site});
  std::memcpy(memory.bytes.get() + offset, value, bytes);
}

}  // namespace emulation
}  // namespace rnnfused
