#include "emulation/clock.h"

#include <algorithm>

namespace rnnfused {
namespace emulation {
namespace {

using Entry = std::pair<uint32_t, Clock::Chunk>;

const Entry* find(const Clock& clock, uint32_t block) {
  const auto at = std::lower_bound(clock.blocks.begin(), clock.blocks.end(), block,
                                   [](const Entry& entry, uint32_t number) { return entry.first < number; });
  return at != clock.blocks.end() && at->first == block ? &*at : nullptr;
}

bool covers(const std::vector<uint32_t>& a, const std::vector<uint32_t>& b) {
  if (b.size() > a.size()) return false;
  for (size_t i = 0; i < b.size(); ++i)
    if (b[i] > a[i]) return false;
  return true;
}

Clock::Chunk join(const Clock::Chunk& a, const Clock::Chunk& b) {
  if (a == b || covers(*a, *b)) return a;
  if (covers(*b, *a)) return b;
  std::vector<uint32_t> result(std::max(a->size(), b->size()), 0);
  std::copy(a->begin(), a->end(), result.begin());
  for (size_t i = 0; i < b->size(); ++i) result[i] = std::max(result[i], (*b)[i]);
  return std::make_shared<const std::vector<uint32_t>>(std::move(result));
}

}  // namespace

uint32_t Clock::of(Actor actor) const {
  const Entry* entry = find(*this, block_of(actor));
  return entry && slot_of(actor) < entry->second->size() ? (*entry->second)[slot_of(actor)] : 0;
}

const Clock::Chunk* Clock::chunk(uint32_t block) const {
  const Entry* entry = find(*this, block);
  return entry ? &entry->second : nullptr;
}

ClockPtr join(const ClockPtr& a, const ClockPtr& b) {
  if (!b || a == b) return a;
  if (!a) return b;
  Clock result;
  auto i = a->blocks.begin(), j = b->blocks.begin();
  while (i != a->blocks.end() || j != b->blocks.end()) {
    if (j == b->blocks.end() || (i != a->blocks.end() && i->first < j->first)) {
      result.blocks.push_back(*i++);
    } else if (i == a->blocks.end() || j->first < i->first) {
      result.blocks.push_back(*j++);
    } else {
      result.blocks.emplace_back(i->first, join(i->second, j->second));
      ++i, ++j;
    }
  }
  if (result.blocks == a->blocks) return a;
  if (result.blocks == b->blocks) return b;
  return std::make_shared<const Clock>(std::move(result));
}

void ClockBuilder::join(const ClockPtr& clock) {
  // From the back: threads of one block come with the same clock, one after another.
  if (clock && std::find(clocks_.rbegin(), clocks_.rend(), clock) == clocks_.rend()) clocks_.push_back(clock);
}

void ClockBuilder::set(Actor actor, uint32_t time) { times_.emplace_back(actor, time); }

ClockPtr ClockBuilder::finish() {
  std::sort(times_.begin(), times_.end());
  auto own = std::make_shared<Clock>();
  for (size_t i = 0; i < times_.size();) {
    const uint32_t block = block_of(times_[i].first);
    size_t end = i;
    while (end < times_.size() && block_of(times_[end].first) == block) ++end;
    std::vector<uint32_t> chunk(slot_of(times_[end - 1].first) + 1, 0);
    for (; i < end; ++i) chunk[slot_of(times_[i].first)] = times_[i].second;  // sorted: the latest time stays
    own->blocks.emplace_back(block, std::make_shared<const std::vector<uint32_t>>(std::move(chunk)));
  }
  ClockPtr result = own->blocks.empty() ? nullptr : ClockPtr(own);
  for (const ClockPtr& clock : clocks_) result = emulation::join(result, clock);
  times_.clear();
  clocks_.clear();
  return result;
}

}  // namespace emulation
}  // namespace rnnfused
