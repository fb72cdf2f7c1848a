#include "torch/memory.h"

#include <c10/core/CPUAllocator.h>

#include "cpu/pool.h"

namespace rnnfused {
namespace {

struct ResultAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < pool::kLarge) return c10::GetCPUAllocator()->allocate(bytes);
    void* const memory = pool::take(bytes);
    // torch's allocator says in torch's words that there is no memory.
    if (!memory) return c10::GetCPUAllocator()->allocate(bytes);
    return {memory, memory, &pool::give, c10::Device(c10::DeviceType::CPU)};
  }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

}  // namespace

c10::Allocator* result_allocator() {
  static ResultAllocator allocator;
  return &allocator;
}

size_t kept_bytes() { return pool::kept_bytes(); }

void empty_cache() { pool::clear(); }

}  // namespace rnnfused
