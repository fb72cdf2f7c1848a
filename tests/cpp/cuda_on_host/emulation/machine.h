// The emulated device: threads in blocks in clusters in a grid, and who runs next.
#pragma once

#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "cuda/launch.cuh"
#include "emulation/async_copy.h"
#include "emulation/clock.h"
#include "emulation/fault.h"
#include "emulation/fiber.h"
#include "emulation/language.h"
#include "emulation/mbarrier.h"
#include "emulation/meeting.h"
#include "emulation/ready_queue.h"
#include "emulation/schedule.h"
#include "emulation/shadow.h"

namespace rnnfused {
namespace emulation {

struct Block;
struct Cluster;
class Grid;

// Of one launch.
struct Statistics {
  uint64_t switches = 0;
  uint64_t ldmatrix_rows = 0;            // groups of 8 rows of 16 bytes
  uint64_t ldmatrix_bank_conflicts = 0;  // rows that share their banks with another row of their group
};
const Statistics& last_launch();  // of this OS thread

enum class ThreadState : uint8_t { ready, waiting, exited };

struct Thread {
  Registers registers;
  Block* block = nullptr;
  unsigned number = 0;  // in its block
  ThreadState state = ThreadState::ready;
  Fiber* fiber = nullptr;  // while it has begun and not exited
  uint64_t priority = 0;
  Site site;                       // of its last call into the emulator
  const char* activity = nullptr;  // what it waits in
  void* operands = nullptr;        // what it brought to a warp collective

  ClockPtr clock;         // what it knows of others
  uint32_t now = 1;       // its own time; what it publishes is up to here, what it does next is later
  ClockPtr fenced, seen;  // published by its last fence; read by relaxed loads, learned at its next fence
  CopyQueue copies;
  const void* polled = nullptr;  // the address of its last relaxed loads, and how many there were
  unsigned polls = 0;

  Actor actor() const;
  Actor engine() const;  // that carries out its cp.async
  Access access(Site at) const { return {actor(), now, at, false}; }
  bool knows(Actor other, uint32_t time) const;
  std::string str() const;
};

// A block's dynamic shared memory.
struct SharedMemory {
  SharedMemory(size_t size, bool races);
  std::unique_ptr<unsigned char[], void (*)(void*)> bytes;
  size_t size;
  Shadow shadow;
};

struct Block {
  Cluster* cluster = nullptr;
  uint32_t number = 0;  // in the grid
  unsigned rank = 0;    // in its cluster
  unsigned running = 0;
  std::vector<Thread> threads;
  std::vector<Meeting> warps;
  Meeting everyone;
  std::unique_ptr<SharedMemory> shared;
  std::map<std::ptrdiff_t, MbarrierState> mbarriers;  // by offset in shared memory

  // What must be known to have ended when the block exits: the last access of each peer to its memory, and
  // asynchronous stores to it and from it.
  std::unordered_map<Actor, Access> remote;
  ClockBuilder exits;

  Actor actor_of_mbarrier(const MbarrierState& mbarrier) const;
  Meeting& warp_of(const Thread& thread) { return warps[thread.number / 32]; }
};

struct Cluster {
  Grid* grid = nullptr;
  unsigned running = 0;
  std::vector<std::unique_ptr<Block>> blocks;
  Meeting everyone;
};

class Grid {
 public:
  using Body = void (*)(void*);
  Grid(const cuda::LaunchConfig& config, Body body, void* arguments, const Schedule& schedule);
  ~Grid();
  void run();
  void abandon();  // after a fault: forgets the threads that wait

  const cuda::LaunchConfig& config() const { return config_; }
  Random& random() { return random_; }
  const Schedule& settings() const { return schedule_; }

  // From the running thread.
  void wait(Thread& thread, const char* activity);  // until somebody calls wake
  void wake(Thread& thread);
  void may_switch(Thread& thread);  // a place where the order of threads matters to others
  void pause(Thread& thread) { yield(thread); }
  void poll_failed(Thread& thread, Site site);
  void progress() { failed_polls_ = 0; }

  void set_error(const Fault& fault) { error_ = std::make_exception_ptr(fault); }  // instead of a throw
  void store_later(const RemoteStore& store);
  Meeting& meeting_of_all(Site site);
  ClockPtr& clock_at(const void* address) { return clocks_[address]; }  // of a word of global memory
  Statistics& statistics() { return statistics_; }

  // The thread lets others know what it did so far, and what it knows.
  Published publish(Thread& thread);
  void learn(Thread& thread, const ClockPtr& clock);

 private:
  void start_cluster();
  void execute(Thread& thread);
  void yield(Thread& thread);
  static void thread_main(void* thread);
  void exit_thread(Thread& thread);
  void exit_block(Block& block, const Thread& last);
  void deliver_one();
  [[noreturn]] void report_deadlock();
  std::string waiting_threads() const;

  cuda::LaunchConfig config_;
  Body body_;
  void* arguments_;
  Schedule schedule_;
  Random random_;
  ReadyQueue ready_;
  bool ranks_blocks_ = false;
  bool cluster_ended_ = false;
  uint32_t next_cluster_ = 0, clusters_total_ = 0;
  std::vector<std::unique_ptr<Cluster>> clusters_;  // that run
  Meeting everyone_;
  std::exception_ptr error_;
  uint64_t failed_polls_ = 0;
  uint64_t lowest_priority_ = 1u << 31;  // random ones are above, but for very few
  std::vector<RemoteStore> stores_;      // in flight
  std::unordered_map<const void*, ClockPtr> clocks_;
  Statistics statistics_;
  ClockPtr learned_before_, learned_from_, learned_;  // the last join: a block's threads all make the same
};

// Where `bytes` at `offset` of a block's shared memory may be accessed by the thread; else a fault.
SharedMemory& checked_shared(Thread& thread, Block* block, std::ptrdiff_t offset, size_t bytes, Site site,
                             const char* what);

Thread* running_or_null();
Thread& running();  // the emulated thread that calls; throws where there is none

}  // namespace emulation
}  // namespace rnnfused
