#include "emulation/page_faults.h"

#include <dlfcn.h>
#include <signal.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>

#include "emulation/global.h"
#include "emulation/machine.h"

namespace rnnfused {
namespace emulation {
namespace {

struct sigaction previous_segv, previous_bus;

// What the handler found, for the thread that it sends back.
thread_local const void* fault_address = nullptr;
thread_local const void* fault_instruction = nullptr;
thread_local GlobalMemory* fault_memory = nullptr;

// Where the handler makes the thread go on; false where this machine's registers are not known here.
bool redirect(void* context, void (*target)(), const void** instruction) {
#if defined(__x86_64__)
  auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  *instruction = reinterpret_cast<const void*>(registers[REG_RIP]);
  // Below the red zone, as if called.
  registers[REG_RSP] = ((registers[REG_RSP] - 256) & ~greg_t(15)) - 8;
  registers[REG_RIP] = reinterpret_cast<greg_t>(target);
  return true;
#elif defined(__aarch64__)
  auto& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
  *instruction = reinterpret_cast<const void*>(machine.pc);
  machine.sp = (machine.sp - 256) & ~uint64_t(15);
  machine.pc = reinterpret_cast<uint64_t>(target);
  return true;
#else
  (void)context, (void)target, (void)instruction;
  return false;
#endif
}

void handle(int signal, siginfo_t* info, void* context) {
  const Thread* thread = running_or_null();
  if (thread) {
    GlobalMemory* memory = GlobalMemory::of(info->si_addr);
    const bool overflow = !memory && thread->fiber && thread->fiber->guards(info->si_addr);
    if (overflow) {
      // There is no stack left to report from.
      static const char text[] = "rnnfused emulation: a kernel thread's stack overflowed\n";
      std::fwrite(text, 1, sizeof text - 1, stderr);
    } else if (memory && memory->guards(info->si_addr)) {
      fault_address = info->si_addr;
      fault_memory = memory;
      if (redirect(context, end_thread_by_fault, &fault_instruction)) return;
    }
  }
  const struct sigaction& previous = signal == SIGSEGV ? previous_segv : previous_bus;
  if (previous.sa_flags & SA_SIGINFO) {
    previous.sa_sigaction(signal, info, context);
  } else if (previous.sa_handler == SIG_DFL || previous.sa_handler == SIG_IGN) {
    sigaction(signal, &previous, nullptr);  // the instruction runs again, and faults again
  } else {
    previous.sa_handler(signal);
  }
}

std::string instruction_name(const void* instruction) {
  Dl_info module = {};
  char text[64];
  if (dladdr(instruction, &module) && module.dli_fname) {
    std::snprintf(text, sizeof text, "%#zx",
                  size_t(static_cast<const char*>(instruction) - static_cast<const char*>(module.dli_fbase)));
    return std::string(module.dli_fname) + " + " + text + " (addr2line -Cife " + module.dli_fname + " " +
           text + ")";
  }
  std::snprintf(text, sizeof text, "%p", instruction);
  return text;
}

// Of this OS thread: a fiber whose stack has overflowed has none to handle it on.
void prepare_signal_stack() {
  static thread_local std::unique_ptr<char[]> memory;
  stack_t stack = {};
  if (memory || (sigaltstack(nullptr, &stack) == 0 && !(stack.ss_flags & SS_DISABLE))) return;
  constexpr size_t kBytes = 64 << 10;
  memory.reset(new char[kBytes]);
  stack.ss_sp = memory.get();
  stack.ss_size = kBytes;
  stack.ss_flags = 0;
  sigaltstack(&stack, nullptr);
}

}  // namespace

PageFaultHandler::PageFaultHandler() {
  prepare_signal_stack();
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &previous_segv);
  sigaction(SIGBUS, &action, &previous_bus);
}

PageFaultHandler::~PageFaultHandler() {
  sigaction(SIGSEGV, &previous_segv, nullptr);
  sigaction(SIGBUS, &previous_bus, nullptr);
}

void end_thread_by_fault() {
  Thread& thread = running();
  Grid& grid = *thread.block->cluster->grid;
  {
    // Destroyed here: nobody comes back to this stack.
    const auto offset = static_cast<const unsigned char*>(fault_address) - fault_memory->begin();
    grid.set_error(
        Fault(FaultKind::global_bounds, thread.str() + " accesses byte " + std::to_string(offset) + " of " +
                                            std::to_string(fault_memory->bytes()) + " of global buffer '" +
                                            fault_memory->name() + "' by the instruction at " +
                                            instruction_name(fault_instruction) +
                                            "; its last emulated call was at " + thread.site.str()));
  }
  thread.fiber->suspend();
  std::abort();  // nobody resumes it
}

}  // namespace emulation
}  // namespace rnnfused
