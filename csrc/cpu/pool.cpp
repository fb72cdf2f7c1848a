#include "cpu/pool.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
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

// What its user sees starts so many bytes after the beginning of a piece of memory: a cache line that nobody
// touches.
constexpr size_t kGuard = 64;

// Pages of which no byte lies outside are the system's again, and zero when they are touched next.
void discard(char* begin, size_t bytes) {
  static const size_t page = size_t(sysconf(_SC_PAGESIZE));
  const auto first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
  const auto last = (reinterpret_cast<uintptr_t>(begin) + bytes) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

// Regions from the system, cut into pieces as they are asked for. Free neighbours are one piece again, so
// that the tape of a layer, once freed, serves the gradients of the layer before it, and is whole at the next
// step. Giving memory back asks the system for none: it happens where nothing may fail.
class Pool {
 public:
  // Null where the system has no more.
  void* take(size_t wanted) try {
    const size_t bytes = (kGuard + wanted + 63) / 64 * 64;
    const std::lock_guard<std::mutex> lock(mutex_);
    auto best = pieces_.end();
    for (auto piece = pieces_.begin(); piece != pieces_.end(); ++piece) {
      const Piece& found = piece->second;
      if (found.state != used && found.bytes >= bytes &&
          (best == pieces_.end() || found.bytes < best->second.bytes))
        best = piece;
    }
    if (best == pieces_.end()) {
      release_regions(bytes);
      best = new_region(bytes);
      if (best == pieces_.end()) return nullptr;
    } else {
      split(best, bytes);
      if (best->second.state == kept) kept_ -= best->second.bytes;
      best->second.state = used;
    }
    char* const memory = best->first + kGuard;
    allow(memory, wanted);
    return memory;
  } catch (const std::bad_alloc&) {
    return nullptr;
  }

  void give(void* memory) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto piece = pieces_.find(static_cast<char*>(memory) - kGuard);
    forbid(piece->first, piece->second.bytes);
    piece->second.state = kept;
    kept_ += piece->second.bytes;
    join(piece);
    if (kept_ > kKeptBytes) discard_pages(release_regions(kept_ - kKeptBytes));
  }

  void clear() {
    const std::lock_guard<std::mutex> lock(mutex_);
    discard_pages(release_regions(SIZE_MAX));
  }

  size_t kept_bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return kept_;
  }

  std::mutex& mutex() { return mutex_; }

 private:
  // Of what is discarded the system has the pages.
  enum State { used, kept, discarded };
  struct Piece {
    size_t bytes;
    State state;
    bool begins_region;
  };
  using Pieces = std::map<char*, Piece>;  // by where they begin

  // The end of the pieces where the system has no more.
  Pieces::iterator new_region(size_t bytes) {
    char* const region = static_cast<char*>(::operator new(bytes, kAlignment, std::nothrow));
    if (!region) return pieces_.end();
    try {
      const auto piece = pieces_.emplace(region, Piece{bytes, used, true}).first;
      forbid(region, bytes);
      return piece;
    } catch (...) {
      ::operator delete(region, kAlignment);
      throw;
    }
  }

  // Leaves so many bytes of a piece, if the rest is worth being one.
  void split(Pieces::iterator piece, size_t bytes) {
    Piece& whole = piece->second;
    if (whole.bytes - bytes < kLarge) return;
    pieces_.emplace_hint(std::next(piece), piece->first + bytes,
                         Piece{whole.bytes - bytes, whole.state, false});
    whole.bytes = bytes;
  }

  // Joins a piece that is kept with its free neighbours: all of it is kept then.
  void join(Pieces::iterator piece) {
    const auto next = std::next(piece);
    if (next != pieces_.end() && goes_on(next)) append(piece, next);
    if (goes_on(piece) && std::prev(piece)->second.state != used) append(std::prev(piece), piece);
  }

  // Whether it is free, and the one before it is of the same region.
  bool goes_on(Pieces::iterator piece) const {
    return piece->second.state != used && !piece->second.begins_region;
  }

  void append(Pieces::iterator piece, Pieces::iterator next) {
    for (const auto& part : {piece, next}) {
      if (part->second.state == discarded) kept_ += part->second.bytes;
    }
    piece->second.bytes += next->second.bytes;
    piece->second.state = kept;
    pieces_.erase(next);
  }

  // What is left of so many bytes when a piece is kept no more.
  size_t without(Piece& piece, size_t bytes) {
    if (piece.state != kept) return bytes;
    kept_ -= piece.bytes;
    piece.state = discarded;
    return bytes - std::min(bytes, piece.bytes);
  }

  // Gives regions that are wholly free back to the system, until as many bytes that were kept are gone;
  // returns how many are not.
  size_t release_regions(size_t bytes) {
    for (auto piece = pieces_.begin(); piece != pieces_.end() && bytes > 0;) {
      const auto next = std::next(piece);
      const bool whole = piece->second.state != used && piece->second.begins_region &&
                         (next == pieces_.end() || next->second.begins_region);
      if (whole) {
        bytes = without(piece->second, bytes);
        allow(piece->first, piece->second.bytes);
        ::operator delete(piece->first, kAlignment);
        pieces_.erase(piece);
      }
      piece = next;
    }
    return bytes;
  }

  // The same of regions of which a part is used: their pages.
  void discard_pages(size_t bytes) {
    for (auto piece = pieces_.begin(); piece != pieces_.end() && bytes > 0; ++piece) {
      if (piece->second.state != kept) continue;
      discard(piece->first, piece->second.bytes);
      bytes = without(piece->second, bytes);
    }
  }

  std::mutex mutex_;
  Pieces pieces_;
  size_t kept_ = 0;  // bytes of the pieces that are
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

size_t kept_bytes() { return the_pool().kept_bytes(); }

void clear() { the_pool().clear(); }

std::unique_ptr<void, Give> owned(size_t bytes) {
  void* const memory = take(bytes);
  if (!memory) throw std::bad_alloc();
  return std::unique_ptr<void, Give>(memory);
}

}  // namespace rnnfused::pool
