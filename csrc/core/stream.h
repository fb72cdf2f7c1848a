// Ranges, memory laid out piece by piece, and where the rows of a stream are: what drivers of every machine
// need to know of a sequence.
#pragma once

#include "core/sequence.h"

namespace rnnfused::RNNFUSED_ISA {

// A share [first, last) of n things for member m of `members`.
struct Range {
  Index first, last;
  Index size() const { return last - first; }
};

RNNFUSED_HD Range share(Index n, int members, int m) { return {n * m / members, n * (m + 1) / members}; }

// Hands out pieces of one allocation, each from a multiple of kAlignment bytes on. Without a base it only
// counts, so that the code that lays memory out also sizes it.
class Arena {
 public:
  static constexpr Index kAlignment = 64;

  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}

  template <class T>
  T* take(Index n) {
    T* p = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (n * Index(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return p;
  }
  Index used() const { return used_; }

 private:
  char* base_;
  Index used_ = 0;
};

// The batch shard [first, last) of every step, in the order in which a direction runs.
struct Stream {
  SequenceShape shape;
  Index first, last;  // rows of the batch

  Index batch() const { return last - first; }
  // Steps in processing order: position s runs step(s).
  Index step(Index s) const { return shape.reverse ? shape.steps - 1 - s : s; }
  // Rows of the shard that are active at position s; none before the first and after the last.
  Index active(Index s) const {
    if (s < 0 || s >= shape.steps) return 0;
    const Index n = shape.active(step(s)) - first;
    return n < 0 ? 0 : n < batch() ? n : batch();
  }
  // Row b of the shard at position s, among all rows of the sequence.
  Index row(Index s, Index b) const { return shape.offsets[step(s)] + first + b; }
  // The row before it in processing order, or -1 where row b of the shard starts at s.
  Index previous(Index s, Index b) const { return b < active(s - 1) ? row(s - 1, b) : -1; }
  // The row at which row b of the shard ends, or -1 if it is never active.
  Index final_row(Index b) const {
    for (Index s = shape.steps - 1; s >= 0; --s) {
      if (b < active(s)) return row(s, b);
    }
    return -1;
  }
};

}  // namespace rnnfused::RNNFUSED_ISA
