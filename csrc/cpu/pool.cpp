#include "cpu/pool.h"

#include <pthread.h>

#include <map>
#include <mutex>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace rnnfused::pool {
namespace {

constexpr std::align_val_t kAlignment{64};

// AddressSanitizer is told which bytes nobody may touch: those of free pieces, and what lies around those in
// use.
#if defined(__SANITIZE_ADDRESS__)
void forbid(void* begin, size_t bytes) { __asan_poison_memory_region(begin, bytes); }
void allow(void* begin, size_t bytes) { __asan_unpoison_memory_region(begin, bytes); }
#else
void forbid(void*, size_t) {}
void allow(void*, size_t) {}
#endif

// What its user sees starts one cache line after the beginning of a piece of memory, which says how long the
// piece is.
struct alignas(64) Header {
  size_t bytes;
};

// Regions from the system, cut into pieces as they are asked for. Free neighbours are one piece again, so
// that the tape of a layer, once freed, serves the gradients of the layer before it, and is whole at the next
// step.
class Pool {
 public:
  // Null where the system has no more.
  void* take(size_t wanted) {
    size_t bytes = (sizeof(Header) + wanted + 63) / 64 * 64;
    const std::lock_guard<std::mutex> lock(mutex_);
    auto best = free_.end();
    for (auto piece = free_.begin(); piece != free_.end(); ++piece) {
      if (piece->second >= bytes && (best == free_.end() || piece->second < best->second)) best = piece;
    }
    if (best == free_.end()) {
      release(bytes);
      char* region = static_cast<char*>(::operator new(bytes, kAlignment, std::nothrow));
      if (!region) return nullptr;
      regions_[region] = bytes;
      return in_use(region, bytes, wanted);
    }
    const auto [at, size] = *best;
    free_.erase(best);
    if (size - bytes < kLarge) bytes = size;
    if (bytes < size) free_[at + bytes] = size - bytes;
    kept_ -= bytes;
    return in_use(at, bytes, wanted);
  }

  void give(void* memory) {
    Header* const header = static_cast<Header*>(memory) - 1;
    allow(header, sizeof *header);
    const size_t bytes = header->bytes;
    forbid(header, bytes);
    const std::lock_guard<std::mutex> lock(mutex_);
    kept_ += bytes;
    join(free_.emplace(reinterpret_cast<char*>(header), bytes).first);
    if (kept_ > kKeptBytes) release(kept_ - kKeptBytes);
  }

  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    release(kept_);
  }

  size_t kept() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return kept_;
  }

  std::mutex& mutex() { return mutex_; }

 private:
  using Pieces = std::map<char*, size_t>;  // where they begin, and their bytes

  static void* in_use(char* piece, size_t bytes, size_t wanted) {
    allow(piece, bytes);
    Header* const header = new (piece) Header{bytes};
    char* const memory = piece + sizeof *header;
    forbid(memory + wanted, bytes - sizeof *header - wanted);
    forbid(header, sizeof *header);
    return memory;
  }

  void join(Pieces::iterator piece) {
    const auto next = std::next(piece);
    if (next != free_.end() && touches(*piece, next->first)) {
      piece->second += next->second;
      free_.erase(next);
    }
    if (piece == free_.begin()) return;
    const auto before = std::prev(piece);
    if (touches(*before, piece->first)) {
      before->second += piece->second;
      free_.erase(piece);
    }
  }

  // Whether a piece goes on at an address of the same region.
  bool touches(const Pieces::value_type& piece, char* at) const {
    return piece.first + piece.second == at && regions_.count(at) == 0;
  }

  // Gives regions that are wholly free back to the system, as many as make up the bytes.
  void release(size_t bytes) {
    for (auto piece = free_.begin(); piece != free_.end() && bytes > 0;) {
      const auto [at, size] = *piece;
      const auto region = regions_.find(at);
      if (region == regions_.end() || region->second != size) {
        ++piece;
        continue;
      }
      allow(at, size);
      ::operator delete(at, kAlignment);
      regions_.erase(region);
      piece = free_.erase(piece);
      kept_ -= size;
      bytes -= size < bytes ? size : bytes;
    }
  }

  std::mutex mutex_;
  Pieces regions_, free_;
  size_t kept_ = 0;
};

// Never destroyed: tensors may be freed after everything else. A fork waits until nobody is in it.
Pool& the_pool() {
  static Pool* const pool = [] {
    pthread_atfork([] { the_pool().mutex().lock(); }, [] { the_pool().mutex().unlock(); },
                   [] { the_pool().mutex().unlock(); });
    return new Pool;
  }();
  return *pool;
}

}  // namespace

void* take(size_t bytes) { return the_pool().take(bytes); }

void give(void* memory) {
  if (memory) the_pool().give(memory);
}

size_t kept_bytes() { return the_pool().kept(); }

void clear() { the_pool().clear(); }

std::unique_ptr<void, Give> owned(size_t bytes) {
  void* const memory = take(bytes);
  if (!memory) throw std::bad_alloc();
  return std::unique_ptr<void, Give>(memory);
}

}  // namespace rnnfused::pool
