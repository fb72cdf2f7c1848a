// Turns an access to a guard page, of a global buffer or below a fiber's stack, into a report.
#pragma once

namespace rnnfused {
namespace emulation {

// While it lives. Other faults go to whoever was asked before.
class PageFaultHandler {
 public:
  PageFaultHandler();
  ~PageFaultHandler();
  PageFaultHandler(const PageFaultHandler&) = delete;
  PageFaultHandler& operator=(const PageFaultHandler&) = delete;
};

[[noreturn]] void end_thread_by_fault();  // on the fiber that faulted: reports what the handler found

}  // namespace emulation
}  // namespace rnnfused
