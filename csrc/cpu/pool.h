// Large memory: results and the scratch of large calls. A training step takes and frees the same blocks again
// and again, and fresh pages from the system cost up to a twentieth of its time: freed blocks are kept for
// the next call, as torch does on GPUs.
#pragma once

#include <cstddef>
#include <memory>

namespace rnnfused::pool {

constexpr size_t kKeptBytes = size_t(256) << 20;  // by the process, at most
constexpr size_t kLarge = size_t(1) << 20;        // below which it is not worth it

// Memory aligned to a cache line; null where the system has no more.
void* take(size_t bytes);
void give(void* memory);

// Bytes that are kept and not in use.
size_t kept_bytes();

// Gives them back to the system.
void clear();

struct Give {
  void operator()(void* memory) const { give(memory); }
};
// Throws std::bad_alloc.
std::unique_ptr<void, Give> owned(size_t bytes);

}  // namespace rnnfused::pool
