#include "emulation/shadow.h"

#include <cstdlib>
#include <new>

#include "emulation/machine.h"

namespace rnnfused {
namespace emulation {

// All zero is a cell that nobody touched.
struct Shadow::Cell {
  Access write, read;
  uint32_t more;  // 1 + index into more_readers_, or 0
};

namespace {

bool ordered(const Thread& by, const Access& before) {
  return before.time == 0 || by.knows(before.actor, before.time);
}
bool conflict(const Thread& by, const Access& before, const Access& now) {
  return !(before.atomic && now.atomic) && !ordered(by, before);
}

}  // namespace

Shadow::Shadow(size_t bytes, bool races)
    : granules_((bytes + kGranule - 1) / kGranule),
      races_(races),
      written_(granules_, 0),
      cells_(static_cast<Cell*>(std::calloc(races ? granules_ : 0, sizeof(Cell))), std::free) {
  if (races && granules_ && !cells_) throw std::bad_alloc();
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
        if (cell.more == 0) {
          if (free_more_.empty()) {
            more_readers_.emplace_back();
            free_more_.push_back(uint32_t(more_readers_.size()));
          }
          cell.more = free_more_.back();
          free_more_.pop_back();
        }
        auto& readers = more_readers_[cell.more - 1];
        size_t at = 0;
        while (at < readers.size() && !(ordered(by, readers[at]) && (readers[at].atomic || !access.atomic)))
          ++at;
        if (at == readers.size()) readers.emplace_back();
        readers[at] = access;
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
    if (cell.more != 0) {
      auto& readers = more_readers_[cell.more - 1];
      for (const Access& reader : readers)
        if (conflict(by, reader, access))
          report_race(by, i * kGranule, "the write", access, "the read", reader);
      readers.clear();
      free_more_.push_back(cell.more);
      cell.more = 0;
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
  if (!races_) return;
  cells_.reset(static_cast<Cell*>(std::calloc(granules_, sizeof(Cell))));
  if (granules_ && !cells_) throw std::bad_alloc();
  more_readers_.clear();
  free_more_.clear();
}

}  // namespace emulation
}  // namespace rnnfused
