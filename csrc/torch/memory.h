// Memory of large results. A training step takes and frees the same blocks again and again, and fresh pages
// from the system cost up to a twentieth of its time: freed blocks are kept for the next call, as torch does
// on GPUs.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/util/Exception.h>

#include <new>
#include <stdexcept>

#include "torch/ops.h"

namespace rnnfused {

constexpr size_t kKeptBytes = size_t(256) << 20;       // by the process, at most
constexpr size_t kSmallResultBytes = size_t(1) << 20;  // below which torch's allocator is as good

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

// Bytes that are kept and not in use.
RNNFUSED_API size_t kept_bytes();

// Gives them back to the system.
RNNFUSED_API void empty_cache();

}  // namespace rnnfused
