#include "emulation/machine.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>

#include "emulation/global.h"
#include "emulation/page_faults.h"

namespace rnnfused {
namespace emulation {

__thread const Registers* registers = nullptr;

namespace {

thread_local Thread* current = nullptr;
thread_local Statistics last_statistics;

FiberPool& fibers() {
  static thread_local FiberPool pool;
  return pool;
}

// Launches of several OS threads go one after another: registered buffers are shared by them.
std::mutex& launch_mutex() {
  static std::mutex mutex;
  return mutex;
}

void require(bool valid, const std::string& what) {
  if (!valid) throw Fault(FaultKind::launch, what);
}

std::string text_of(const cuda::Dim3& size) {
  return "(" + std::to_string(size.x) + ", " + std::to_string(size.y) + ", " + std::to_string(size.z) + ")";
}

// The limits of compute capability 9.0.
void check(const cuda::LaunchConfig& config) {
  const cuda::Dim3 &grid = config.grid, &block = config.block;
  require(grid.x && grid.y && grid.z, "empty grid " + text_of(grid));
  require(grid.x <= 0x7fffffff && grid.y <= 65535 && grid.z <= 65535, "grid too large: " + text_of(grid));
  require(block.x && block.y && block.z, "empty block " + text_of(block));
  require(
      block.x <= 1024 && block.y <= 1024 && block.z <= 64 && uint64_t(block.x) * block.y * block.z <= 1024,
      "block of more than 1024 threads: " + text_of(block));
  require(config.shared_bytes >= 0 && config.shared_bytes <= 227 << 10,
          "shared memory: expected at most 232448 bytes, got " + std::to_string(config.shared_bytes));
  require(config.cluster >= 1 && config.cluster <= 16,
          "cluster: expected 1 to 16 blocks, got " + std::to_string(config.cluster));
  require(grid.x % unsigned(config.cluster) == 0, "grid.x = " + std::to_string(grid.x) +
                                                      " is not a multiple of the cluster of " +
                                                      std::to_string(config.cluster));
  require(uint64_t(grid.x) * grid.y * grid.z < kMaxBlocks, "more blocks than the emulator numbers");
}

}  // namespace

Thread* running_or_null() { return current; }

Thread& running() {
  if (!current) throw std::logic_error("a device function was called outside of an emulated launch");
  return *current;
}

const Statistics& last_launch() { return last_statistics; }

Actor Thread::actor() const { return actor_of(block->number, number); }

Actor Thread::engine() const { return actor_of(block->number, uint32_t(block->threads.size()) + number); }

Actor Block::actor_of_mbarrier(const MbarrierState& mbarrier) const {
  return actor_of(number, uint32_t(2 * threads.size()) + mbarrier.number);
}

bool Thread::knows(Actor other, uint32_t time) const {
  if (other == engine()) return time <= copies.known();
  return other == actor() || (clock && clock->of(other) >= time);
}

std::string Thread::str() const {
  const uint3 &b = registers.block, &t = registers.thread;
  const auto text = [](const uint3& i) {
    return i.y == 0 && i.z == 0
               ? std::to_string(i.x)
               : "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
  };
  return "block " + text(b) + " thread " + text(t);
}

SharedMemory::SharedMemory(size_t size_, bool races)
    : bytes(static_cast<unsigned char*>(std::aligned_alloc(128, (size_ + 127) / 128 * 128)), std::free),
      size(size_),
      shadow(size_, races) {
  if (size && !bytes) throw std::bad_alloc();
  if (size) std::memset(bytes.get(), 0xff, size);  // NaN, where a check should be off
}

Grid::Grid(const cuda::LaunchConfig& config, Body body, void* arguments, const Schedule& schedule)
    : config_(config),
      body_(body),
      arguments_(arguments),
      schedule_(schedule),
      random_(schedule.seed),
      ready_(schedule.policy) {
  check(config);
  clusters_total_ = config.grid.x * config.grid.y * config.grid.z / unsigned(config.cluster);
  // One seed ranks blocks, the next ranks threads.
  ranks_blocks_ = schedule.seed % 2 == 1;
}

Grid::~Grid() = default;

void Grid::start_cluster() {
  const unsigned size = unsigned(config_.cluster);
  const cuda::Dim3 grid = config_.grid, block_size = config_.block;
  const unsigned threads = block_size.x * block_size.y * block_size.z;
  auto cluster = std::make_unique<Cluster>();
  cluster->grid = this;
  cluster->running = size;
  for (unsigned rank = 0; rank < size; ++rank) {
    auto block = std::make_unique<Block>();
    block->cluster = cluster.get();
    block->number = next_cluster_ * size + rank;
    block->rank = rank;
    block->running = threads;
    block->threads.resize(threads);
    block->warps.resize((threads + 31) / 32);
    block->shared = std::make_unique<SharedMemory>(size_t(config_.shared_bytes), schedule_.races);
    block->shared->shadow.name("shared memory of block " + std::to_string(block->number));
    const uint3 index = {block->number % grid.x, block->number / grid.x % grid.y,
                         block->number / grid.x / grid.y};
    const uint64_t block_rank = random_.next() >> 32 << 32;
    for (unsigned i = 0; i < threads; ++i) {
      Thread& thread = block->threads[i];
      thread.registers = {
          {i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y},
          index,
          {block_size.x, block_size.y, block_size.z},
          {grid.x, grid.y, grid.z}};
      thread.block = block.get();
      thread.number = i;
      if (schedule_.policy == Policy::priorities)
        thread.priority = ranks_blocks_ ? block_rank | (random_.next() >> 32) : random_.next();
      block->warps[i / 32].add_member(thread);
      block->everyone.add_member(thread);
      cluster->everyone.add_member(thread);
      if (config_.cooperative) everyone_.add_member(thread);
      ready_.push(&thread, thread.priority);
    }
    cluster->blocks.push_back(std::move(block));
  }
  clusters_.push_back(std::move(cluster));
  ++next_cluster_;
}

void Grid::run() {
  const size_t resident =
      config_.cooperative ? clusters_total_ : size_t(std::max(schedule_.resident_clusters, 1));
  for (;;) {
    while (clusters_.size() < resident && next_cluster_ < clusters_total_) start_cluster();
    if (clusters_.empty()) break;
    if (ready_.empty() && stores_.empty()) report_deadlock();
    // Where all that is ready only polls, what is in flight is all that can change anything.
    const bool stuck = ready_.empty() || failed_polls_ > 2 * ready_.size();
    if (!stores_.empty() && (stuck || (schedule_.delivery == Delivery::random && random_.one_in(4))))
      deliver_one();
    if (ready_.empty()) continue;
    execute(*ready_.pop(random_));
    if (!cluster_ended_) continue;
    cluster_ended_ = false;
    clusters_.erase(std::find_if(clusters_.begin(), clusters_.end(),
                                 [](const auto& cluster) { return cluster->running == 0; }));
  }
  last_statistics = statistics_;
}

void Grid::store_later(const RemoteStore& store) {
  if (schedule_.delivery == Delivery::eager) {
    store.deliver(*this);
  } else {
    stores_.push_back(store);
  }
}

void Grid::deliver_one() {
  std::swap(stores_[random_.below(stores_.size())], stores_.back());
  const RemoteStore store = stores_.back();
  stores_.pop_back();
  progress();
  store.deliver(*this);
}

Meeting& Grid::meeting_of_all(Site site) {
  if (!config_.cooperative)
    throw Fault(FaultKind::launch, "grid_sync at " + site.str() + " in a launch that is not cooperative");
  return everyone_;
}

void Grid::execute(Thread& thread) {
  if (!thread.fiber) {
    thread.fiber = fibers().take();
    thread.fiber->assign(thread_main, &thread);
  }
  current = &thread;
  registers = &thread.registers;
  ++statistics_.switches;
  thread.fiber->resume();
  current = nullptr;
  registers = nullptr;
  if (thread.state == ThreadState::exited) {
    fibers().give_back(thread.fiber);
    thread.fiber = nullptr;
  }
  if (error_) std::rethrow_exception(error_);
}

void Grid::abandon() {
  for (const auto& cluster : clusters_) {
    for (const auto& block : cluster->blocks) {
      for (Thread& thread : block->threads) {
        if (!thread.fiber) continue;
        thread.fiber->abandon();
        fibers().give_back(thread.fiber);
        thread.fiber = nullptr;
      }
    }
  }
}

void Grid::thread_main(void* argument) {
  Thread& thread = *static_cast<Thread*>(argument);
  Grid& grid = *thread.block->cluster->grid;
  try {
    grid.body_(grid.arguments_);
    grid.exit_thread(thread);
  } catch (...) {
    grid.error_ = std::current_exception();
  }
  thread.state = ThreadState::exited;
}

void Grid::exit_thread(Thread& thread) {
  Block& block = *thread.block;
  progress();
  if (const Copy* copy = thread.copies.oldest_in_flight()) {
    throw Fault(FaultKind::writes_in_flight,
                thread.str() + " exits before the cp.async at " + copy->site.str() + " was waited for");
  }
  block.warp_of(thread).leave(thread);
  block.everyone.leave(thread);
  block.cluster->everyone.leave(thread);
  if (config_.cooperative) everyone_.leave(thread);
  publish(thread).add_to(block.exits);
  if (--block.running == 0) {
    exit_block(block, thread);
    cluster_ended_ = --block.cluster->running == 0;
  }
}

void Grid::exit_block(Block& block, const Thread& last) {
  const auto refuse = [&](const char* what, Site site) {
    throw Fault(FaultKind::writes_in_flight, "block " + std::to_string(block.number) + " exits (" +
                                                 last.str() + " after " + last.site.str() + ") while " +
                                                 what + " at " + site.str() + " may be in flight");
  };
  for (const RemoteStore& store : stores_) {
    if (store.target == &block) refuse("a st.async to it", store.access.site);
    if (store.issuer == &block) refuse("its st.async", store.access.site);
  }
  if (!schedule_.races) return;
  const ClockPtr known = block.exits.finish();
  for (const auto& entry : block.remote) {
    if (known->of(entry.first) < entry.second.time)
      refuse("an access to or from a peer's shared memory", entry.second.site);
  }
}

void Grid::wait(Thread& thread, const char* activity) {
  progress();
  thread.state = ThreadState::waiting;
  thread.activity = activity;
  thread.fiber->suspend();
}

void Grid::wake(Thread& thread) {
  thread.state = ThreadState::ready;
  thread.activity = nullptr;
  ready_.push(&thread, thread.priority);
}

void Grid::yield(Thread& thread) {
  ready_.push(&thread, thread.priority);
  thread.fiber->suspend();
}

void Grid::may_switch(Thread& thread) {
  progress();
  switch (schedule_.policy) {
    case Policy::round_robin:
      return;
    case Policy::random:
      if (random_.one_in(4)) yield(thread);
      return;
    case Policy::priorities:
      if (random_.one_in(256)) thread.priority = random_.next() >> 8;
      if (!ready_.empty() && ready_.highest() > thread.priority) yield(thread);
      return;
  }
}

void Grid::poll_failed(Thread& thread, Site site) {
  thread.site = site;
  thread.activity = "a poll";
  if (++failed_polls_ > 64 * (ready_.size() + 1)) {
    throw Fault(FaultKind::livelock, thread.str() + " polls at " + site.str() +
                                         " and nothing that runs can end it\n" + waiting_threads());
  }
  // Behind all others: whoever has the highest priority would else poll for ever.
  if (schedule_.policy == Policy::priorities) thread.priority = --lowest_priority_;
  yield(thread);
}

Published Grid::publish(Thread& thread) {
  if (!schedule_.races) return {};
  return {thread.clock, thread.actor(), thread.engine(), thread.now++, thread.copies.known()};
}

void Grid::learn(Thread& thread, const ClockPtr& clock) {
  if (!clock || thread.clock == clock) return;
  if (thread.clock != learned_before_ || clock != learned_from_) {
    learned_before_ = thread.clock;
    learned_from_ = clock;
    learned_ = join(thread.clock, clock);
  }
  thread.clock = learned_;
}

std::string Grid::waiting_threads() const {
  // Threads in the same place are told once, with how many they are.
  std::map<std::string, std::pair<std::string, unsigned>> places;
  for (const auto& cluster : clusters_) {
    for (const auto& block : cluster->blocks) {
      for (const Thread& thread : block->threads) {
        if (thread.state == ThreadState::exited || !thread.fiber) continue;
        auto& place = places["block " + std::to_string(block->number) + ", " +
                             (thread.activity ? thread.activity : "running") + " at " + thread.site.str()];
        if (place.second++ == 0) place.first = thread.str();
      }
    }
  }
  std::string result;
  for (const auto& place : places) {
    result += "  " + place.first + ": " + std::to_string(place.second.second) + " threads, the first " +
              place.second.first + "\n";
  }
  for (const auto& cluster : clusters_) {
    for (const auto& block : cluster->blocks) {
      for (const auto& entry : block->mbarriers) {
        result += "  block " + std::to_string(block->number) + ", mbarrier at byte " +
                  std::to_string(entry.first) + ": " + entry.second.str() + "\n";
      }
    }
  }
  return result;
}

void Grid::report_deadlock() {
  for (const auto& cluster : clusters_) {
    for (const auto& block : cluster->blocks) {
      for (const auto& entry : block->mbarriers) {
        const MbarrierState& mbarrier = entry.second;
        if (mbarrier.pending == 0 && mbarrier.tx != 0 && !mbarrier.waiting.empty())
          throw Fault(FaultKind::tx_count,
                      "every thread waits, all arrived at an mbarrier whose bytes never "
                      "come out even\n" +
                          waiting_threads());
      }
    }
  }
  throw Fault(FaultKind::deadlock, "every thread waits\n" + waiting_threads());
}

void run_launch(const cuda::LaunchConfig& config, Grid::Body body, void* arguments) {
  if (current) throw std::logic_error("a launch from within an emulated kernel");
  std::lock_guard<std::mutex> lock(launch_mutex());
  const PageFaultHandler handler;
  GlobalMemory::start_launch(schedule().races);
  Grid grid(config, body, arguments, schedule());
  try {
    grid.run();
    GlobalMemory::end_launch();
  } catch (...) {
    grid.abandon();
    throw;
  }
}

}  // namespace emulation
}  // namespace rnnfused
