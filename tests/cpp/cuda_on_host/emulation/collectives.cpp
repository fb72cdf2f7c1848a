#include "emulation/collectives.h"

#include "emulation/machine.h"

namespace rnnfused {
namespace emulation {

void meet_block(Site site) {
  Thread& thread = running();
  thread.block->everyone.meet(thread, "block_sync", site, true);
}

}  // namespace emulation
}  // namespace rnnfused
