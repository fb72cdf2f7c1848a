#include "emulation/global.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>
#include <new>
#include <stdexcept>
#include <vector>

#include "emulation/machine.h"

namespace rnnfused {
namespace emulation {
namespace {

// Read by a signal handler, so that it is an array of atomics and not a container.
constexpr size_t kMaxMemories = 4096;
std::atomic<GlobalMemory*> memories[kMaxMemories];
std::atomic<size_t> memories_used{0};  // slots from here on were never used

// For loops over the slots that may hold something.
struct Slots {
  std::atomic<GlobalMemory*>* begin() const { return memories; }
  std::atomic<GlobalMemory*>* end() const { return memories + memories_used.load(); }
};

void add(GlobalMemory* memory) {
  for (size_t i = 0; i < kMaxMemories; ++i) {
    GlobalMemory* empty = nullptr;
    size_t used = memories_used.load();
    while (used <= i && !memories_used.compare_exchange_weak(used, i + 1)) {
    }
    if (memories[i].compare_exchange_strong(empty, memory)) return;
  }
  throw std::length_error("more than 4096 registered buffers");
}

void remove(GlobalMemory* memory) {
  for (auto& slot : Slots()) {
    GlobalMemory* expected = memory;
    if (slot.compare_exchange_strong(expected, nullptr)) return;
  }
}

// Inaccessible on either side, for indices that are off by more than one; address space costs nothing.
constexpr size_t kGuardBytes = 1 << 20;

}  // namespace

GlobalMemory::GlobalMemory(const void* begin, size_t bytes, std::string name, Contents contents)
    : begin_(const_cast<unsigned char*>(static_cast<const unsigned char*>(begin))),
      bytes_(bytes),
      name_(std::move(name)),
      shadow_(std::make_unique<Shadow>(bytes, true)) {
  shadow_->name("global buffer '" + name_ + "'");
  set_contents(contents);
  add(this);
}

GlobalMemory::GlobalMemory(size_t bytes, std::string name, Contents contents)
    : bytes_(bytes), name_(std::move(name)), shadow_(std::make_unique<Shadow>(bytes, true)) {
  const auto page = size_t(sysconf(_SC_PAGESIZE));
  const size_t aligned = (bytes + 15) / 16 * 16;
  const size_t inner = std::max((aligned + page - 1) / page, size_t(1)) * page;
  mapping_bytes_ = inner + 2 * kGuardBytes;
  mapping_ = mmap(nullptr, mapping_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping_ == MAP_FAILED) throw std::bad_alloc();
  auto* first = static_cast<unsigned char*>(mapping_) + kGuardBytes;
  mprotect(first, inner, PROT_READ | PROT_WRITE);
  std::memset(first, 0xff, inner);
  begin_ = first + inner - aligned;
  shadow_->name("global buffer '" + name_ + "'");
  set_contents(contents);
  add(this);
}

GlobalMemory::~GlobalMemory() {
  remove(this);
  if (mapping_) munmap(mapping_, mapping_bytes_);
}

void GlobalMemory::set_contents(Contents contents) {
  if (bytes_) shadow_->set_written(0, bytes_, contents == Contents::written);
}

bool GlobalMemory::guards(const void* address) const {
  const auto* at = static_cast<const unsigned char*>(address);
  const auto* first = static_cast<const unsigned char*>(mapping_);
  return mapping_ && at >= first && at < first + mapping_bytes_ &&
         (at < first + kGuardBytes || at >= first + mapping_bytes_ - kGuardBytes);
}

GlobalMemory* GlobalMemory::of(const void* address) {
  const auto* at = static_cast<const unsigned char*>(address);
  for (auto& slot : Slots()) {
    GlobalMemory* memory = slot.load(std::memory_order_acquire);
    // One past the end is a pointer into it, and empty buffers have one as well.
    if (memory && ((at >= memory->begin_ && at < memory->begin_ + std::max<size_t>(memory->bytes_, 1)) ||
                   memory->guards(address)))
      return memory;
  }
  return nullptr;
}

void GlobalMemory::start_launch(bool races) {
  for (auto& slot : Slots()) {
    GlobalMemory* memory = slot.load(std::memory_order_acquire);
    if (!memory) continue;
    memory->shadow_->look_for_races(races);
    if (!memory->accessed_) continue;
    memory->shadow_->forget_accesses();
    memory->accessed_ = false;
  }
}

void GlobalMemory::end_launch() {
  for (auto& slot : Slots()) {
    const GlobalMemory* memory = slot.load(std::memory_order_acquire);
    if (memory && memory->mapping_) memory->check_surroundings();
  }
}

// What is accessible beside the buffer, since pages are larger and vectors are aligned, has kept its pattern.
void GlobalMemory::check_surroundings() const {
  auto* first = static_cast<unsigned char*>(mapping_) + kGuardBytes;
  auto* end = static_cast<unsigned char*>(mapping_) + mapping_bytes_ - kGuardBytes;
  const auto check = [&](unsigned char* from, unsigned char* to) {
    for (unsigned char* at = from; at < to; ++at) {
      if (*at == 0xff) continue;
      std::memset(from, 0xff, size_t(to - from));  // reported once
      throw Fault(FaultKind::global_bounds, "a thread wrote at byte " + std::to_string(at - begin_) + " of " +
                                                std::to_string(bytes_) + " of global buffer '" + name_ +
                                                "'; found when the launch had ended");
    }
  };
  check(first, begin_);
  check(begin_ + bytes_, end);
}

void GlobalMemory::access(const Thread& thread, const void* address, size_t bytes, Site site, AccessMode mode,
                          bool atomic) {
  const auto* at = static_cast<const unsigned char*>(address);
  const std::ptrdiff_t offset = at - begin_;
  if (offset < 0 || size_t(offset) + bytes > bytes_)
    throw Fault(FaultKind::global_bounds, thread.str() + (mode == AccessMode::read ? " reads " : " writes ") +
                                              std::to_string(bytes) + " bytes at byte " +
                                              std::to_string(offset) + " of " + std::to_string(bytes_) +
                                              " of global buffer '" + name_ + "' at " + site.str());
  accessed_ = true;
  Access access = thread.access(site);
  access.atomic = atomic;
  if (mode == AccessMode::read) {
    shadow_->read(thread, size_t(offset), bytes, access);
  } else {
    shadow_->write(thread, size_t(offset), bytes, access);
  }
}

void check_global(Thread& thread, const void* address, size_t bytes, Site site, AccessMode mode,
                  bool atomic) {
  thread.site = site;
  if (bytes == 0) return;
  if (GlobalMemory* memory = GlobalMemory::of(address))
    memory->access(thread, address, bytes, site, mode, atomic);
}

namespace {

void check(const GlobalPlace& place, size_t bytes, Site site, AccessMode mode) {
  Thread& thread = running();
  thread.site = site;
  if (reinterpret_cast<uintptr_t>(place.address) % bytes != 0 && (bytes & (bytes - 1)) == 0)
    throw Fault(FaultKind::misaligned, thread.str() + " accesses " + std::to_string(bytes) +
                                           " bytes at a misaligned global address at " + site.str());
  if (place.memory) place.memory->access(thread, place.address, bytes, site, mode, false);
}

}  // namespace

void GlobalPlace::read(void* value, size_t bytes, Site site) const {
  check(*this, bytes, site, AccessMode::read);
  std::memcpy(value, address, bytes);
}

void GlobalPlace::write(const void* value, size_t bytes, Site site) const {
  check(*this, bytes, site, AccessMode::write);
  std::memcpy(address, value, bytes);
}

}  // namespace emulation
}  // namespace rnnfused
