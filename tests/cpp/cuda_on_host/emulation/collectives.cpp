#include "emulation/collectives.h"

#include "emulation/machine.h"

namespace rnnfused {
namespace emulation {
namespace {

struct ShuffleOperands {
  Shuffle kind;
  uint32_t value;
  unsigned argument;
  uint32_t result;
};

void exchange_shuffle(const std::vector<Thread*>& lanes) {
  for (size_t lane = 0; lane < lanes.size(); ++lane) {
    auto& own = *static_cast<ShuffleOperands*>(lanes[lane]->operands);
    size_t source = 0;
    switch (own.kind) {
      case Shuffle::exclusive_or:
        source = lane ^ own.argument;
        break;
      case Shuffle::down:
        source = lane + own.argument;
        break;
    }
    if (source >= 32) source = lane;
    if (source >= lanes.size())
      throw Fault(FaultKind::barrier_divergence, lanes[lane]->str() + " shuffles from lane " +
                                                     std::to_string(source) + ", which this warp lacks, at " +
                                                     lanes[lane]->site.str());
    own.result = static_cast<ShuffleOperands*>(lanes[source]->operands)->value;
  }
}

}  // namespace

void meet_block(Site site) {
  Thread& thread = running();
  thread.block->everyone.meet(thread, "block_sync", site, true);
}

void meet_warp(Site site) {
  Thread& thread = running();
  thread.block->warp_of(thread).meet(thread, "warp_sync", site, true);
}

void meet_cluster(Site site) {
  Thread& thread = running();
  thread.block->cluster->everyone.meet(thread, "cluster_sync", site, true);
}

void meet_grid(Site site) {
  Thread& thread = running();
  thread.block->cluster->grid->meeting_of_all(site).meet(thread, "grid_sync", site, true);
}

// A shuffle exchanges registers; it orders no accesses to memory.
uint32_t shuffle_word(uint32_t value, Shuffle kind, unsigned argument, Site site) {
  Thread& thread = running();
  ShuffleOperands operands = {kind, value, argument, 0};
  thread.operands = &operands;
  thread.block->warp_of(thread).meet(thread, "a shuffle", site, false, exchange_shuffle);
  return operands.result;
}

Block* peer_block(unsigned rank, Site site) {
  Thread& thread = running();
  const auto& blocks = thread.block->cluster->blocks;
  if (rank >= blocks.size())
    throw Fault(FaultKind::shared_bounds, thread.str() + " maps to rank " + std::to_string(rank) +
                                              " of a cluster of " + std::to_string(blocks.size()) + " at " +
                                              site.str());
  return blocks[rank].get();
}

unsigned own_cluster_rank() { return running().block->rank; }
unsigned own_cluster_size() { return unsigned(running().block->cluster->blocks.size()); }

}  // namespace emulation
}  // namespace rnnfused
