#include "emulation/fault.h"

namespace rnnfused {
namespace emulation {

const char* name_of(FaultKind kind) {
  switch (kind) {
    case FaultKind::launch:
      return "invalid launch";
    case FaultKind::trap:
      return "trap";
    case FaultKind::barrier_divergence:
      return "barrier divergence";
    case FaultKind::deadlock:
      return "deadlock";
    case FaultKind::tx_count:
      return "mbarrier tx-count mismatch";
    case FaultKind::livelock:
      return "livelock";
    case FaultKind::shared_bounds:
      return "shared memory out of bounds";
    case FaultKind::global_bounds:
      return "global memory out of bounds";
    case FaultKind::misaligned:
      return "misaligned access";
    case FaultKind::unwritten:
      return "read of never-written memory";
    case FaultKind::race:
      return "data race";
    case FaultKind::peer_not_running:
      return "access to a peer that may not be running";
    case FaultKind::writes_in_flight:
      return "exit with writes in flight";
    case FaultKind::mbarrier_phase:
      return "wrong mbarrier phase";
    case FaultKind::mbarrier_state:
      return "mbarrier misuse";
  }
  return "unknown fault";
}

}  // namespace emulation
}  // namespace rnnfused
