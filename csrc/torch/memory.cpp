#include "torch/memory.h"

#include <c10/core/CPUAllocator.h>
#include <pthread.h>

#include <map>
#include <mutex>
#include <new>

namespace rnnfused {
namespace {

constexpr std::align_val_t kAlignment{64};

// What a tensor sees starts one cache line after the beginning of its piece of memory, which says how long
// the piece is.
struct alignas(64) Header {
  size_t bytes;
};

// Regions from the system, cut into pieces as they are asked for. Free neighbours are one piece again, so
// that the tape of a layer, once freed, serves the gradients of the layer before it, and is whole at the next
// step.
class Pool {
 public:
  // Null where the system has no more.
  Header* take(size_t bytes) {
    bytes = (sizeof(Header) + bytes + 63) / 64 * 64;
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
      return new (region) Header{bytes};
    }
    const auto [at, size] = *best;
    free_.erase(best);
    if (size - bytes < kSmallResultBytes) bytes = size;
    if (bytes < size) free_[at + bytes] = size - bytes;
    kept_ -= bytes;
    return new (at) Header{bytes};
  }

  void give(Header* header) {
    const std::lock_guard<std::mutex> lock(mutex_);
    kept_ += header->bytes;
    join(free_.emplace(reinterpret_cast<char*>(header), header->bytes).first);
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
Pool& pool() {
  static Pool* const pool = [] {
    pthread_atfork([] { rnnfused::pool().mutex().lock(); }, [] { rnnfused::pool().mutex().unlock(); },
                   [] { rnnfused::pool().mutex().unlock(); });
    return new Pool;
  }();
  return *pool;
}

void give_back(void* header) { pool().give(static_cast<Header*>(header)); }

struct ResultAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < kSmallResultBytes) return c10::GetCPUAllocator()->allocate(bytes);
    Header* header = pool().take(bytes);
    // torch's allocator says in torch's words that there is no memory.
    if (!header) return c10::GetCPUAllocator()->allocate(bytes);
    return {header + 1, header, &give_back, c10::Device(c10::DeviceType::CPU)};
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

size_t kept_bytes() { return pool().kept(); }

void empty_cache() { pool().clear(); }

}  // namespace rnnfused
