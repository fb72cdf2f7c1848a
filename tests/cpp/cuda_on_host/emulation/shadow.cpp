#include "emulation/shadow.h"

#include <cstdlib>
#include <new>

#include "emulation/machine.h"

namespace rnnfused {
namespace emulation {

// All zero is a cell that nobody touched.
struct Shadow::Cell {
  Access write, read;
  uint32_t readers;  // 1 + index into readers_, or 0
};

// A list while they are few, then one entry for each thread of each block.
struct Shadow::Readers {
  static constexpr size_t kFew = 16;
  struct Last {
    uint32_t time = 0;
    uint32_t atomic : 1, site : 31;
  };
  std::vector<Access> few;
  std::vector<std::pair<uint32_t, std::vector<Last>>> many;  // by block number, each by slot

  void add(const Thread& by, const Access& access, Shadow& shadow);
  void add_to_many(const Access& access, uint32_t threads, Shadow& shadow);
  bool find_conflict(const Thread& by, const Access& access, const Shadow& shadow, Access& found) const;
};

namespace {

bool ordered(const Thread& by, const Access& before) {
  return before.time == 0 || by.knows(before.actor, before.time);
}
bool conflict(const Thread& by, const Access& before, const Access& now) {
  return !(before.atomic && now.atomic) && !ordered(by, before);
}

}  // namespace

void Shadow::Readers::add(const Thread& by, const Access& access, Shadow& shadow) {
  const auto threads = uint32_t(by.block->threads.size());
  if (!many.empty()) return add_to_many(access, threads, shadow);
  for (Access& reader : few) {
    if (!ordered(by, reader) || (access.atomic && !reader.atomic)) continue;
    reader = access;
    return;
  }
  few.push_back(access);
  if (few.size() <= kFew) return;
  for (const Access& reader : few) add_to_many(reader, threads, shadow);
  few.clear();
}

void Shadow::Readers::add_to_many(const Access& access, uint32_t threads, Shadow& shadow) {
  const uint32_t block = block_of(access.actor);
  auto at = many.begin();
  while (at != many.end() && at->first != block) ++at;
  if (at == many.end()) at = many.insert(at, {block, std::vector<Last>(threads)});
  Last& last = at->second[slot_of(access.actor)];
  if (access.atomic && last.time != 0 && !last.atomic) return;  // a plain one conflicts with more
  last.time = access.time;
  last.atomic = access.atomic;
  last.site = shadow.number_of(access.site) & 0x7fffffff;
}

bool Shadow::Readers::find_conflict(const Thread& by, const Access& access, const Shadow& shadow,
                                    Access& found) const {
  for (const Access& reader : few) {
    if (!conflict(by, reader, access)) continue;
    found = reader;
    return true;
  }
  for (const auto& block : many) {
    const Clock::Chunk* known = by.clock ? by.clock->chunk(block.first) : nullptr;
    for (uint32_t slot = 0; slot < block.second.size(); ++slot) {
      const Last& last = block.second[slot];
      if (known && slot < (*known)->size() && (**known)[slot] >= last.time) continue;
      const Access reader = {actor_of(block.first, slot), last.time, shadow.sites_[last.site],
                             last.atomic == 1};
      if (!conflict(by, reader, access)) continue;
      found = reader;
      return true;
    }
  }
  return false;
}

uint32_t Shadow::number_of(Site site) {
  for (size_t i = sites_.size(); i-- > 0;)
    if (sites_[i] == site) return uint32_t(i);
  sites_.push_back(site);
  return uint32_t(sites_.size() - 1);
}

Shadow::Readers& Shadow::readers_of(Cell& cell) {
  if (cell.readers == 0) {
    if (free_readers_.empty()) {
      readers_.emplace_back();
      free_readers_.push_back(uint32_t(readers_.size()));
    }
    cell.readers = free_readers_.back();
    free_readers_.pop_back();
  }
  return readers_[cell.readers - 1];
}

Shadow::Shadow(size_t bytes, bool races)
    : granules_((bytes + kGranule - 1) / kGranule),
      races_(races),
      written_(granules_, 0),
      cells_(nullptr, std::free) {
  if (!races || granules_ == 0) return;
  cells_.reset(static_cast<Cell*>(std::calloc(granules_, sizeof(Cell))));
  if (!cells_) throw std::bad_alloc();
}

Shadow::~Shadow() = default;

std::string Shadow::place(size_t offset) const { return name_ + " at byte " + std::to_string(offset); }

void Shadow::report_race(const Thread& by, size_t offset, const char* is, const Access& access,
                         const char* was, const Access& other) const {
  const Block& block = *by.block;
  const auto who = [&](Actor actor) {
    const uint32_t slot = slot_of(actor), threads = uint32_t(block.threads.size());
    return slot < threads       ? "thread " + std::to_string(slot)
           : slot < 2 * threads ? "cp.async of thread " + std::to_string(slot - threads)
                                : "st.async to mbarrier " + std::to_string(slot - 2 * threads);
  };
  throw Fault(FaultKind::race, place(offset) + ": " + is + " by " + by.str() + " at " + access.site.str() +
                                   " and " + was + " by block " + std::to_string(block_of(other.actor)) +
                                   " " + who(other.actor) + " at " + other.site.str() + " are not ordered");
}

void Shadow::read(const Thread& by, size_t offset, size_t bytes, const Access& access) {
  const size_t begin = offset / kGranule, end = (offset + bytes + kGranule - 1) / kGranule;
  for (size_t i = begin; i < end; ++i) {
    if (races_) {
      Cell& cell = cells_[i];
      if (conflict(by, cell.write, access))
        report_race(by, i * kGranule, "the read", access, "the write", cell.write);
      if (cell.read.time == 0 || (ordered(by, cell.read) && (cell.read.atomic || !access.atomic))) {
        cell.read = access;
      } else {
        readers_of(cell).add(by, access, *this);
      }
    }
    if (!written_[i]) {
      throw Fault(FaultKind::unwritten,
                  place(i * kGranule) + ", read by " + by.str() + " at " + access.site.str());
    }
  }
}

void Shadow::write_later(const Thread& by, size_t offset, size_t bytes, const Access& access) {
  if (!races_) return;
  const size_t begin = offset / kGranule, end = (offset + bytes + kGranule - 1) / kGranule;
  for (size_t i = begin; i < end; ++i) {
    Cell& cell = cells_[i];
    if (conflict(by, cell.write, access))
      report_race(by, i * kGranule, "the write", access, "the write", cell.write);
    if (conflict(by, cell.read, access))
      report_race(by, i * kGranule, "the write", access, "the read", cell.read);
    if (cell.readers != 0) {
      Readers& readers = readers_of(cell);
      Access other;
      if (readers.find_conflict(by, access, *this, other))
        report_race(by, i * kGranule, "the write", access, "the read", other);
      readers.few.clear();
      readers.many.clear();
      free_readers_.push_back(cell.readers);
      cell.readers = 0;
    }
    cell.write = access;
    cell.read = Access();
  }
}

void Shadow::write(const Thread& by, size_t offset, size_t bytes, const Access& access) {
  write_later(by, offset, bytes, access);
  set_written(offset, bytes, true);
}

void Shadow::set_written(size_t offset, size_t bytes, bool written) {
  const size_t end = (offset + bytes + kGranule - 1) / kGranule;
  for (size_t i = offset / kGranule; i < end; ++i) written_[i] = written;
}

void Shadow::forget_accesses() {
  if (!cells_) return;
  cells_.reset(static_cast<Cell*>(std::calloc(granules_, sizeof(Cell))));
  if (!cells_) throw std::bad_alloc();
  readers_.clear();
  free_readers_.clear();
}

}  // namespace emulation
}  // namespace rnnfused
