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

// Some of a batch's sequences: `count` of them from `first` on, each `stride` after the one before it.
struct Shard {
  Index first, count, stride;
};

// The shard s of `shards` that share a batch. Where sequences end at different steps, each shard takes every
// so many-th of them, so that all have as many rows at every step.
inline Shard shard_of(const SequenceShape& shape, int shards, int s) {
  if (shards > 1 && shape.steps > 0 && shape.active(shape.steps - 1) < shape.batch)
    return {s, (shape.batch - s + shards - 1) / shards, shards};
  const Range even = share(shape.batch, shards, s);
  return {even.first, even.size(), 1};
}

// The sequences of a shard, in the order in which a direction runs.
struct Stream {
  SequenceShape shape;
  Shard shard;

  Stream(const SequenceShape& of, const Shard& some) : shape(of), shard(some) {}
  explicit Stream(const SequenceShape& all) : Stream(all, {0, all.batch, 1}) {}

  Index batch() const { return shard.count; }
  // Which of the batch's sequences is the shard's b-th.
  Index sequence(Index b) const { return shard.first + b * shard.stride; }
  // Steps in processing order: position s runs step(s).
  Index step(Index s) const { return shape.reverse ? shape.steps - 1 - s : s; }
  // Sequences of the shard that are active at position s; none before the first and after the last.
  Index active(Index s) const {
    if (s < 0 || s >= shape.steps) return 0;
    const Index n = shape.active(step(s)) - shard.first;
    const Index own = shard.stride == 1 ? n : (n + shard.stride - 1) / shard.stride;
    return n < 0 ? 0 : own < batch() ? own : batch();
  }
  // Row b of the shard at position s, among all rows of the sequence.
  Index row(Index s, Index b) const { return shape.offsets[step(s)] + sequence(b); }
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
