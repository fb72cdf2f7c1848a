// Turns an access to a guard page, of a global buffer or below a fiber's stack, into a report.
#pragma once

namespace rnnfused {
namespace emulation {

void catch_page_faults();                 // once per process; other faults go to whoever was asked before
void prepare_signal_stack();              // of this OS thread
[[noreturn]] void end_thread_by_fault();  // on the fiber that faulted: reports what the handler found

}  // namespace emulation
}  // namespace rnnfused
