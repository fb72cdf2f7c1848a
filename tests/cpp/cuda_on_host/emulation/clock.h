// Vector clocks: what each thread knows of the others' past. Most threads of a block know the same, so that
// a clock is a list of blocks that share immutable chunks.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace rnnfused {
namespace emulation {

// Who does things that others must learn of, block by block: its threads, each thread's cp.async engine, and
// its mbarriers (an asynchronous store is known to whoever knows the end of its phase).
using Actor = uint32_t;
constexpr uint32_t kActorBits = 12;  // up to 1024 threads, 1024 engines and kMaxMbarriers
constexpr uint32_t kMaxMbarriers = 256;
constexpr uint32_t kMaxBlocks = 1u << (32 - kActorBits);

inline uint32_t block_of(Actor actor) { return actor >> kActorBits; }
inline uint32_t slot_of(Actor actor) { return actor & ((1u << kActorBits) - 1); }
inline Actor actor_of(uint32_t block, uint32_t slot) { return block << kActorBits | slot; }

struct Clock {
  using Chunk = std::shared_ptr<const std::vector<uint32_t>>;  // by slot: the last time known
  std::vector<std::pair<uint32_t, Chunk>> blocks;              // by block number

  uint32_t of(Actor actor) const;
  const Chunk* chunk(uint32_t block) const;  // or null, where nothing is known of it
};
using ClockPtr = std::shared_ptr<const Clock>;  // null knows nothing

ClockPtr join(const ClockPtr& a, const ClockPtr& b);

// Collects clocks and times into one clock.
class ClockBuilder {
 public:
  void join(const ClockPtr& clock);
  void set(Actor actor, uint32_t time);
  ClockPtr finish();  // and begins anew

 private:
  std::vector<ClockPtr> clocks_;  // each once
  std::vector<std::pair<Actor, uint32_t>> times_;
};

}  // namespace emulation
}  // namespace rnnfused
