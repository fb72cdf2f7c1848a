// cp.async: copies into the issuing thread's block that end when it waits for their group, or before.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "emulation/shared.h"

namespace rnnfused {
namespace emulation {

struct Block;
struct Thread;

struct Copy {
  uint32_t time;   // of the thread's copy engine
  uint32_t group;  // that it was committed to
  std::ptrdiff_t offset;
  const void* source;
  size_t bytes, valid;  // the rest is zero
  Site site;
};

// One thread's copies in flight, in the order of issue.
class CopyQueue {
 public:
  uint32_t next_time() { return ++issued_; }
  uint32_t group() const { return group_; }
  uint32_t known() const { return known_; }  // the last copy that the thread has waited for

  void add(const Copy& copy) { in_flight_.push_back(copy); }
  void commit() { ++group_; }
  // Ends all but the `newest` last groups; an uncommitted group counts where `open` is set.
  void wait(Block& block, uint32_t newest, bool open);
  const Copy* oldest_in_flight() const { return in_flight_.empty() ? nullptr : &in_flight_.front(); }

 private:
  std::vector<Copy> in_flight_;
  uint32_t issued_ = 0, group_ = 0, known_ = 0;
};

void issue_copy(Block* block, std::ptrdiff_t offset, const void* source, size_t bytes, size_t valid,
                Site site);
void commit_copies(Site site);
void wait_for_copies(uint32_t newest, bool open, Site site);

}  // namespace emulation

namespace cuda {

template <int Bytes, class T>
void cp_async(Shared<T> destination, const void* source, emulation::Site site = emulation::Site::here()) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  emulation::issue_copy(destination.block(), destination.offset(), source, Bytes, Bytes, site);
}
// `valid` bytes are copied, the rest become zero.
template <int Bytes, class T>
void cp_async_zfill(Shared<T> destination, const void* source, unsigned valid,
                    emulation::Site site = emulation::Site::here()) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16, "cp.async copies 4, 8 or 16 bytes");
  emulation::issue_copy(destination.block(), destination.offset(), source, Bytes, valid, site);
}
inline void cp_async_commit(emulation::Site site = emulation::Site::here()) {
  emulation::commit_copies(site);
}
// Waits for this thread's groups but the `Newest` last ones. Other threads see them after a barrier.
template <int Newest>
void cp_async_wait(emulation::Site site = emulation::Site::here()) {
  emulation::wait_for_copies(Newest, false, site);
}
// Waits for all of this thread's copies, committed or not.
inline void cp_async_wait_all(emulation::Site site = emulation::Site::here()) {
  emulation::wait_for_copies(0, true, site);
}

}  // namespace cuda
}  // namespace rnnfused
