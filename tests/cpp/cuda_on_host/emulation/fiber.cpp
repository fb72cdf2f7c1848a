#include "emulation/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace rnnfused {
namespace emulation {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 512 << 10;
#else
constexpr size_t kStackBytes = 128 << 10;
#endif

size_t page_bytes() {
  static const auto bytes = size_t(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

// A sanitizer must be told of every change of stack. These do nothing without one.
class SwitchAnnotation {
 public:
#if defined(__SANITIZE_ADDRESS__)
  static void start(void** fake_stack, const void* bottom, size_t bytes) {
    __sanitizer_start_switch_fiber(fake_stack, bottom, bytes);
  }
  static void finish(void* fake_stack, const void** bottom, size_t* bytes) {
    __sanitizer_finish_switch_fiber(fake_stack, bottom, bytes);
  }
  static void forget(void* stack, size_t bytes) { __asan_unpoison_memory_region(stack, bytes); }
#else
  static void start(void**, const void*, size_t) {}
  static void finish(void*, const void**, size_t*) {}
  static void forget(void*, size_t) {}
#endif
};

#if defined(__x86_64__)

struct FiberContext {
  void* fiber_stack_pointer = nullptr;
  void* host_stack_pointer = nullptr;
  void* fiber_fake_stack = nullptr;
  const void* host_bottom = nullptr;
  size_t host_bytes = 0;
};

extern "C" void rnnfused_switch_stack(void** save, void* load);
// Saves what the System V ABI calls callee-saved, the two floating-point control words included.
asm(R"(
.text
.p2align 4
.hidden rnnfused_switch_stack
.globl rnnfused_switch_stack
.type rnnfused_switch_stack,@function
rnnfused_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  subq $8, %rsp
  stmxcsr (%rsp)
  fnstcw 4(%rsp)
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  ldmxcsr (%rsp)
  fldcw 4(%rsp)
  addq $8, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size rnnfused_switch_stack, .-rnnfused_switch_stack
.hidden rnnfused_enter_fiber
.globl rnnfused_enter_fiber
.type rnnfused_enter_fiber,@function
rnnfused_enter_fiber:
  movq %r12, %rdi
  callq *%rbx
  ud2
.size rnnfused_enter_fiber, .-rnnfused_enter_fiber
)");
extern "C" void rnnfused_enter_fiber();

namespace {

void prepare(FiberContext& context, char* stack, size_t bytes, void (*main)(void*), void* argument) {
  // As rnnfused_switch_stack leaves it: control words, r15 ... rbp, return address.
  auto* top = reinterpret_cast<uint64_t*>(stack + bytes) - 2;
  uint32_t mxcsr;
  uint16_t control;
  asm volatile("stmxcsr %0" : "=m"(mxcsr));
  asm volatile("fnstcw %0" : "=m"(control));
  *--top = reinterpret_cast<uint64_t>(&rnnfused_enter_fiber);
  *--top = 0;                                     // rbp: the end of the frames, for debuggers
  *--top = reinterpret_cast<uint64_t>(main);      // rbx
  *--top = reinterpret_cast<uint64_t>(argument);  // r12
  for (int i = 0; i < 3; ++i) *--top = 0;         // r13, r14, r15
  *--top = uint64_t(mxcsr) | uint64_t(control) << 32;
  context.fiber_stack_pointer = top;
}
void to_fiber(FiberContext& context) {
  rnnfused_switch_stack(&context.host_stack_pointer, context.fiber_stack_pointer);
}
void to_host(FiberContext& context) {
  rnnfused_switch_stack(&context.fiber_stack_pointer, context.host_stack_pointer);
}

}  // namespace

#else  // about fifty times as slow: it changes the signal mask by a system call

struct FiberContext {
  ucontext_t fiber, host;
  void (*main)(void*) = nullptr;
  void* argument = nullptr;
  void* fiber_fake_stack = nullptr;
  const void* host_bottom = nullptr;
  size_t host_bytes = 0;
};

namespace {

void enter(unsigned high, unsigned low) {
  auto* context = reinterpret_cast<FiberContext*>(uintptr_t(uint64_t(high) << 32 | low));
  context->main(context->argument);
}
void prepare(FiberContext& context, char* stack, size_t bytes, void (*main)(void*), void* argument) {
  context.main = main;
  context.argument = argument;
  getcontext(&context.fiber);
  context.fiber.uc_stack.ss_sp = stack;
  context.fiber.uc_stack.ss_size = bytes;
  context.fiber.uc_link = nullptr;
  const auto address = uint64_t(reinterpret_cast<uintptr_t>(&context));
  makecontext(&context.fiber, reinterpret_cast<void (*)()>(enter), 2, unsigned(address >> 32),
              unsigned(address));
}
void to_fiber(FiberContext& context) { swapcontext(&context.host, &context.fiber); }
void to_host(FiberContext& context) { swapcontext(&context.fiber, &context.host); }

}  // namespace

#endif

Fiber::Fiber(size_t number) : context_(new FiberContext), colour_(number * 9 * 64 % (16 << 10)) {
  memory_ = mmap(nullptr, kStackBytes + page_bytes(), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory_ == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory_, page_bytes(), PROT_NONE);
  prepare(*context_, stack(), kStackBytes - colour_, main, this);
}

Fiber::~Fiber() {
  SwitchAnnotation::forget(stack(), kStackBytes);
  munmap(memory_, kStackBytes + page_bytes());
}

char* Fiber::stack() const { return static_cast<char*>(memory_) + page_bytes(); }

void Fiber::assign(Entry entry, void* argument) {
  entry_ = entry;
  argument_ = argument;
}

void Fiber::abandon() {
  SwitchAnnotation::forget(stack(), kStackBytes);
  context_->fiber_fake_stack = nullptr;
  prepare(*context_, stack(), kStackBytes - colour_, main, this);
}

void Fiber::main(void* self) {
  auto& fiber = *static_cast<Fiber*>(self);
  SwitchAnnotation::finish(nullptr, &fiber.context_->host_bottom, &fiber.context_->host_bytes);
  for (;;) {
    fiber.entry_(fiber.argument_);
    fiber.suspend();
  }
}

void Fiber::resume() {
  void* fake_stack = nullptr;
  SwitchAnnotation::start(&fake_stack, stack(), kStackBytes);
  to_fiber(*context_);
  SwitchAnnotation::finish(fake_stack, nullptr, nullptr);
}

void Fiber::suspend() {
  SwitchAnnotation::start(&context_->fiber_fake_stack, context_->host_bottom, context_->host_bytes);
  to_host(*context_);
  SwitchAnnotation::finish(context_->fiber_fake_stack, &context_->host_bottom, &context_->host_bytes);
}

bool Fiber::guards(const void* address) const {
  const auto* begin = static_cast<const char*>(memory_);
  return address >= begin && address < begin + page_bytes();
}

Fiber* FiberPool::take() {
  if (free_.empty()) {
    all_.push_back(std::make_unique<Fiber>(all_.size()));
    free_.push_back(all_.back().get());
  }
  Fiber* fiber = free_.back();
  free_.pop_back();
  return fiber;
}

}  // namespace emulation
}  // namespace rnnfused
