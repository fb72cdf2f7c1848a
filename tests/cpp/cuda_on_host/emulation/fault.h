// What the emulator reports, and where in the source it happened.
#pragma once

#include <stdexcept>
#include <string>

namespace rnnfused {
namespace emulation {

// A place in the source. As a default argument `Site site = Site::here()` names the caller's line.
struct Site {
  const char* file = nullptr;
  int line = 0;

  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  bool operator==(const Site& other) const { return file == other.file && line == other.line; }
  std::string str() const { return file ? file + (":" + std::to_string(line)) : "(no emulated call yet)"; }
};

enum class FaultKind {
  launch,              // a configuration that no device takes
  trap,                // the kernel called trap()
  barrier_divergence,  // threads of one barrier or warp collective at different places, or already exited
  deadlock,            // every thread waits
  tx_count,            // an mbarrier that transfers and expectations can not bring to a phase's end
  livelock,            // spins that nothing can end
  shared_bounds,       // outside of the block's dynamic shared memory
  global_bounds,       // outside of a guarded or registered global buffer
  misaligned,          // an address that the access's size does not divide
  unwritten,           // a read of bytes that nobody wrote
  race,                // two accesses that no synchronisation orders
  peer_not_running,    // a peer's shared memory before it surely runs, or after it exited
  writes_in_flight,    // exit of a block with asynchronous writes to or from it in flight
  mbarrier_phase,      // a wait for a phase that is neither the current nor the last
  mbarrier_state,      // an mbarrier that was not initialised, or has too many arrivals
};

const char* name_of(FaultKind kind);

class Fault : public std::runtime_error {
 public:
  Fault(FaultKind kind, const std::string& report)
      : std::runtime_error(std::string(name_of(kind)) + ": " + report), kind_(kind) {}
  FaultKind kind() const { return kind_; }

 private:
  FaultKind kind_;
};

}  // namespace emulation
}  // namespace rnnfused
