// Global memory's guards, launches that no device takes, and what is left after a fault.
#include <cstdlib>
#include <cuda/launch.cuh>
#include <cuda/ptx.cuh>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "emulation/machine.h"
#include "testing.h"

namespace rnnfused {
namespace emulation {
namespace {

using namespace cuda;

LaunchConfig one_block(unsigned threads, int shared_bytes = 0) {
  LaunchConfig config;
  config.block.x = threads;
  config.shared_bytes = shared_bytes;
  return config;
}

// The kind of fault that `body` ends by, and what it reports.
template <class Body>
FaultKind fault_of(Body body, std::string* report = nullptr) {
  try {
    body();
  } catch (const Fault& fault) {
    if (report) *report = fault.what();
    return fault.kind();
  }
  FAIL("no fault");
  return FaultKind::launch;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

__global__ void copy_plain(const float* in, float* out, int shift_in, int shift_out) {
  const int i = int(threadIdx.x);
  block_sync();
  out[i + shift_out] = in[i + shift_in];
}

__global__ void copy_through_accessor(Global<const float> in, Global<float> out, int shift_in,
                                      int shift_out) {
  const int i = int(threadIdx.x);
  const float value = PLANTED(in[i + shift_in]);
  PLANTED(out[i + shift_out] = value);
}

TEST_CASE("plain accesses beyond a guarded buffer are reported") {
  GlobalBuffer<float> in(64, "the input"), out(64, "the output");
  std::iota(in.begin(), in.end(), 0.0f);
  under_all_schedules(1, [&] {
    launch(one_block(64), nullptr, copy_plain, in.data(), out.data(), 0, 0);
    CHECK(out[63] == 63);
    const auto run = [&](int shift_in, int shift_out) {
      launch(one_block(64), nullptr, copy_plain, in.data(), out.data(), shift_in, shift_out);
    };
    std::string report;
    CHECK((fault_of([&] { run(1, 0); }, &report) == FaultKind::global_bounds));
    CHECK(contains(report, "block 0 thread 63 accesses byte 256 of 256 of global buffer 'the input'"));
    CHECK(contains(report, "test_memory.cpp:"));
    CHECK((fault_of([&] { run(0, 2); }, &report) == FaultKind::global_bounds));
    CHECK(contains(report, "global buffer 'the output'"));
    // Before the buffer is what is left of its first page, and then the other guard.
    CHECK((fault_of([&] { run(0, -1); }, &report) == FaultKind::global_bounds));
    CHECK(contains(report, "wrote at byte -4 of 256 of global buffer 'the output'"));
    CHECK((fault_of([&] { run(0, -4096); }, &report) == FaultKind::global_bounds));
    CHECK(contains(report, "global buffer 'the output'"));
  });
}

TEST_CASE("a buffer that ends between two vectors is guarded as well") {
  const GlobalBuffer<float> in(6, "in"), out(6, "out");
  launch(one_block(6), nullptr, copy_plain, in.data(), out.data(), 0, 0);
  std::string report;
  const auto run = [&] { launch(one_block(6), nullptr, copy_plain, in.data(), out.data(), -1, 1); };
  in[4] = 1;
  CHECK((fault_of(run, &report) == FaultKind::global_bounds));
  CHECK(contains(report, "wrote at byte 24 of 24 of global buffer 'out'"));
}

template <class Body>
void must_report_here(FaultKind kind, size_t lines, Body body) {
  must_report({kind}, "test_memory.cpp", lines, body);
}

TEST_CASE("accesses through the accessor are checked, whosever the memory is") {
  GlobalBuffer<float> guarded(64, "guarded");
  std::vector<float> plain(64, 1);
  const GlobalMemory registered(plain.data(), plain.size() * sizeof(float), "registered", Contents::written);
  const auto run = [](const float* in, float* out, int shift_in, int shift_out, unsigned threads = 64) {
    launch(one_block(threads), nullptr, copy_through_accessor, in, out, shift_in, shift_out);
  };
  run(plain.data(), guarded.data(), 0, 0);
  must_report_here(FaultKind::global_bounds, 1, [&] { run(plain.data(), guarded.data(), 1, 0); });
  must_report_here(FaultKind::global_bounds, 1, [&] { run(plain.data(), guarded.data(), -1, 0); });
  must_report_here(FaultKind::global_bounds, 1, [&] { run(guarded.data(), plain.data(), 0, 1); });
  // In place and shifted: thread i reads what thread i + 1 writes.
  must_report_here(FaultKind::race, 2, [&] { run(plain.data(), plain.data(), 0, 1, 32); });

  GlobalBuffer<float> unwritten(64, "unwritten", Contents::unwritten);
  must_report_here(FaultKind::unwritten, 1, [&] { run(unwritten.data(), guarded.data(), 0, 0); });
  run(guarded.data(), unwritten.data(), 0, 0);
  run(unwritten.data(), guarded.data(), 0, 0);
}

enum class Mistake { misaligned_shared, misaligned_global, misaligned_copy, traps, null_shared };

template <Mistake M>
__global__ void mistake(float* data) {
  const Shared<float> shared = shared_memory<float>(M == Mistake::misaligned_shared ? 2 : 0);
  if (M == Mistake::misaligned_shared) PLANTED(shared[0] = 1);
  if (M == Mistake::null_shared) PLANTED(Shared<float>()[0] = 1);
  if (M == Mistake::misaligned_copy) PLANTED(cp_async<16>(shared, data + 1));
  const Global<float4> quads = global_cast<float4>(Global<float>(data + 1));
  if (M == Mistake::misaligned_global) PLANTED(quads[0] = make_float4(1, 2, 3, 4));
  if (M == Mistake::traps) PLANTED(trap());
}

TEST_CASE("misaligned accesses, null pointers and traps") {
  const GlobalBuffer<float> data(64, "data");
  const auto config = one_block(1, 64);
  must_report_here(FaultKind::misaligned, 1,
                   [&] { launch(config, nullptr, mistake<Mistake::misaligned_shared>, data.data()); });
  must_report_here(FaultKind::misaligned, 1,
                   [&] { launch(config, nullptr, mistake<Mistake::misaligned_global>, data.data()); });
  must_report_here(FaultKind::misaligned, 1,
                   [&] { launch(config, nullptr, mistake<Mistake::misaligned_copy>, data.data()); });
  must_report_here(FaultKind::shared_bounds, 1,
                   [&] { launch(config, nullptr, mistake<Mistake::null_shared>, data.data()); });
  must_report_here(FaultKind::trap, 1,
                   [&] { launch(config, nullptr, mistake<Mistake::traps>, data.data()); });
}

__global__ void nothing() {}

TEST_CASE("launches that no device takes") {
  const auto refused = [](const LaunchConfig& config) {
    return fault_of([&] { launch(config, nullptr, nothing); }) == FaultKind::launch;
  };
  launch(LaunchConfig(), nullptr, nothing);
  CHECK(refused(one_block(0)));
  CHECK(refused(one_block(1025)));
  CHECK(refused(one_block(32, (227 << 10) + 1)));
  LaunchConfig config = one_block(32);
  config.grid.x = 6;
  config.cluster = 4;
  CHECK(refused(config));
  config.cluster = 0;
  CHECK(refused(config));
  config.cluster = 1;
  config.grid.y = 65536;
  CHECK(refused(config));
}

__global__ void wait_for_nobody() {
  const Shared<Mbarrier> barrier = shared_memory<Mbarrier>(8);
  if (threadIdx.x == 0) mbarrier_init(barrier, 40);
  block_sync();
  mbarrier_arrive(barrier);
  PLANTED(mbarrier_wait(barrier, 0));
}

TEST_CASE("a deadlock's report has the mbarrier's state") {
  must_report_here(FaultKind::deadlock, 1, [] {
    std::string report;
    try {
      launch(one_block(32, 16), nullptr, wait_for_nobody);
    } catch (const Fault& fault) {
      CHECK(contains(fault.what(),
                     "block 0, mbarrier at byte 8: phase 0 in progress, 8 of 40 arrivals pending"));
      CHECK(contains(fault.what(), "32 threads"));
      throw;
    }
  });
}

__global__ void remote_read(float* out, bool sync_at_end) {
  const Shared<float> own = shared_memory<float>(0);
  own[threadIdx.x] = float(cluster_rank());
  cluster_sync();
  const float other = PLANTED(cluster_map(own, 1 - cluster_rank())[threadIdx.x]);
  out[blockIdx.x * blockDim.x + threadIdx.x] = other;
  if (sync_at_end) cluster_sync();
}

TEST_CASE("a block must outlive its peers' plain accesses") {
  LaunchConfig config = one_block(32, 128);
  config.grid.x = config.cluster = 2;
  GlobalBuffer<float> out(64, "out");
  under_all_schedules(2, [&] {
    launch(config, nullptr, remote_read, out.data(), true);
    for (unsigned i = 0; i < 64; ++i) CHECK(out[i] == (i < 32 ? 1 : 0));
  });
  must_report({FaultKind::writes_in_flight, FaultKind::peer_not_running}, "test_memory.cpp", 1,
              [&] { launch(config, nullptr, remote_read, out.data(), false); });
}

// Two buffers with no barrier that says "read": right only where the end of a st.async orders what its thread
// did before.
__global__ void ping_pong(float* out, int steps) {
  const Shared<float> buffers = shared_memory<float>(0);
  const Shared<Mbarrier> full = shared_memory<Mbarrier>(16);
  for (unsigned k = 0; k < 2; ++k) {
    mbarrier_init(full + k, 1);
    mbarrier_arrive_expect_tx(full + k, 4);
  }
  fence_mbarrier_init();
  cluster_sync();
  const unsigned peer = 1 - cluster_rank();
  float value = float(cluster_rank());
  for (unsigned t = 0; t < unsigned(steps); ++t) {
    st_async(cluster_map(buffers + t % 2, peer), value, cluster_map(full + t % 2, peer));
    mbarrier_wait(full + t % 2, t / 2);
    if (t + 2 < unsigned(steps)) mbarrier_arrive_expect_tx(full + t % 2, 4);
    value = buffers[t % 2];
    value += 1;
  }
  out[blockIdx.x] = value;
  cluster_sync();
}

TEST_CASE("whether a protocol rests on st.async ordering what was before it") {
  LaunchConfig config = one_block(1, 32);
  config.grid.x = config.cluster = 2;
  GlobalBuffer<float> out(2, "out");
  under_all_schedules(2, [&] {
    launch(config, nullptr, ping_pong, out.data(), 5);
    CHECK(out[0] == 6);
    CHECK(out[1] == 5);
    schedule().stores_publish = false;
    CHECK((fault_of([&] { launch(config, nullptr, ping_pong, out.data(), 5); }) == FaultKind::race));
  });
}

__global__ void store_to_itself() {
  const Shared<float> value = shared_memory<float>(0);
  const Shared<Mbarrier> full = shared_memory<Mbarrier>(16);
  mbarrier_init(full, 1);
  fence_mbarrier_init();
  cluster_sync();
  PLANTED(st_async(cluster_map(value, 0), 1.0f, cluster_map(full, 0)));
}

TEST_CASE("asynchronous stores need a cluster") {
  must_report_here(FaultKind::launch, 1, [] { launch(one_block(1, 32), nullptr, store_to_itself); });
}

__global__ void reverse(float* data) {
  const Shared<float> shared = shared_memory<float>(0);
  const unsigned i = threadIdx.x;
  shared[i] = data[i];
  block_sync();
  shared[blockDim.x + i] = shared[blockDim.x - 1 - i];
  shared[blockDim.x + i] += 1;
  data[i] = shared[blockDim.x + i] - 1.0f;
}

TEST_CASE("several threads of the operating system launch at once") {
  std::vector<std::thread> threads;
  std::vector<std::vector<float>> data(4, std::vector<float>(256));
  for (auto& own : data) {
    std::iota(own.begin(), own.end(), 0.0f);
    threads.emplace_back([&own] {
      for (int k = 0; k < 21; ++k) launch(one_block(256, 2048), nullptr, reverse, own.data());
    });
  }
  for (auto& thread : threads) thread.join();
  for (const auto& own : data)
    for (size_t i = 0; i < own.size(); ++i) CHECK(own[i] == float(255 - i));
}

TEST_CASE("device functions need a launch") { CHECK_THROWS_AS(block_sync(), std::logic_error); }

TEST_CASE("the schedule comes from the environment") {
  setenv("RNNFUSED_EMULATION_SEED", "77", 1);
  setenv("RNNFUSED_EMULATION_POLICY", "priorities", 1);
  setenv("RNNFUSED_EMULATION_DELIVERY", "late", 1);
  setenv("RNNFUSED_EMULATION_RACES", "0", 1);
  const Schedule read = Schedule::from_environment();
  CHECK(read.seed == 77);
  CHECK((read.policy == Policy::priorities));
  CHECK((read.delivery == Delivery::late));
  CHECK(!read.races);
  setenv("RNNFUSED_EMULATION_POLICY", "fair", 1);
  CHECK_THROWS_WITH(Schedule::from_environment(),
                    "RNNFUSED_EMULATION_POLICY: expected round_robin, random or priorities, got 'fair'");
  for (const char* name : {"SEED", "POLICY", "DELIVERY", "RACES"})
    unsetenv((std::string("RNNFUSED_EMULATION_") + name).c_str());
}

}  // namespace
}  // namespace emulation
}  // namespace rnnfused
