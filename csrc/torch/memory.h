// Memory of results, and what is said where there is none: large ones come from a pool (cpu/pool.h).
#pragma once

#include <c10/core/Allocator.h>
#include <c10/util/Exception.h>

#include <new>
#include <stdexcept>

#include "torch/ops.h"

namespace rnnfused {

c10::Allocator* result_allocator();

// Runs body; where memory for its own work cannot be had, throws what torch's allocator throws, by which
// those who look for the largest batch know it.
template <class Body>
auto within_memory(Body body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    TORCH_CHECK(false, "DefaultCPUAllocator: can't allocate memory: rnnfused found none for its work");
  } catch (const std::length_error&) {
    TORCH_CHECK(false,
                "DefaultCPUAllocator: can't allocate memory: rnnfused's work takes more than there can be");
  }
}

// Bytes that the pool keeps and that are not in use.
RNNFUSED_API size_t kept_bytes();

// Gives them back to the system.
RNNFUSED_API void empty_cache();

}  // namespace rnnfused
