// What is known of every two bytes of a memory: whether anybody wrote them, and the last accesses.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "emulation/clock.h"
#include "emulation/fault.h"

namespace rnnfused {
namespace emulation {

struct Thread;

// One access. Its time counts its actor's, and 0 is none.
struct Access {
  Actor actor = 0;
  uint32_t time = 0;
  Site site;
  bool atomic = false;  // accesses that are atomic on both sides do not race
};

class Shadow {
 public:
  static constexpr size_t kGranule = 2;  // bytes; narrower elements would share one and race falsely

  Shadow(size_t bytes, bool races);
  ~Shadow();
  void name(std::string text) { name_ = std::move(text); }
  void look_for_races(bool races) { races_ = races && cells_ != nullptr; }

  // `by` checks the access; it happens as `access` (the thread itself, or an asynchronous write it issues).
  void read(const Thread& by, size_t offset, size_t bytes, const Access& access);
  void write(const Thread& by, size_t offset, size_t bytes, const Access& access);
  // An asynchronous write has begun: `write` but for the bytes, which have yet to come.
  void write_later(const Thread& by, size_t offset, size_t bytes, const Access& access);
  void set_written(size_t offset, size_t bytes, bool written);
  void forget_accesses();  // as at the start of a launch, which waits for all before it

 private:
  struct Cell;
  struct Readers;  // of a cell that several threads read at once
  Readers& readers_of(Cell& cell);
  uint32_t number_of(Site site);
  [[noreturn]] void report_race(const Thread& by, size_t offset, const char* is, const Access& access,
                                const char* was, const Access& other) const;
  std::string place(size_t offset) const;

  size_t granules_;
  bool races_;
  std::string name_;
  std::vector<uint8_t> written_;
  std::unique_ptr<Cell[], void (*)(void*)> cells_;  // zeroed pages until touched
  std::vector<Readers> readers_;
  std::vector<uint32_t> free_readers_;
  std::vector<Site> sites_;
};

}  // namespace emulation
}  // namespace rnnfused
