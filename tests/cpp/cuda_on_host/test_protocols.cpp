// Whole protocols: right under every schedule, and each planted mistake reported with its file and line.
#include <numeric>
#include <vector>

#include "emulation/global.h"
#include "kernels.h"

namespace rnnfused {
namespace emulation {
namespace {

using cuda::launch;
using cuda::LaunchConfig;
using cuda::Plant;

LaunchConfig blocks(unsigned grid, unsigned block, int shared_bytes = 0) {
  LaunchConfig config;
  config.grid.x = grid;
  config.block.x = block;
  config.shared_bytes = shared_bytes;
  return config;
}

GlobalBuffer<float> ramp(size_t count) {
  GlobalBuffer<float> result(count, "in");
  for (size_t i = 0; i < count; ++i) result[i] = float(i % 97) / 8;
  return result;
}

template <Plant P>
void run_sum_rows() {
  constexpr int kRows = 5, kThreads = 128;
  const auto in = ramp(kRows * kThreads);
  GlobalBuffer<float> out(kRows, "out");
  launch(blocks(1, kThreads, P == Plant::reads_unwritten ? 20 : 16), nullptr,
         cuda::sum_rows < P == Plant::reads_unwritten ? Plant::reads_beyond : P >, in.data(), out.data(),
         kRows);
  for (size_t row = 0; row < kRows; ++row)
    CHECK(out[row] == std::accumulate(in.data() + row * kThreads, in.data() + (row + 1) * kThreads, 0.0f));
}

template <Plant P>
void run_add_neighbours() {
  constexpr int kTiles = 5;
  constexpr size_t kThreads = 64;
  const auto in = ramp(kTiles * kThreads);
  GlobalBuffer<float> out(in.size(), "out");
  launch(blocks(1, kThreads, 2 * kThreads * sizeof(float)), nullptr, cuda::add_neighbours<P>, in.data(),
         out.data(), kTiles);
  for (size_t i = 0; i < in.size(); ++i) {
    const size_t next = i / kThreads * kThreads + (i + 1) % kThreads;
    CHECK(out[i] == in[i] + in[next]);
  }
}

// What the exchanges must give for `members` that begin with `value`.
std::vector<float> exchanged(std::vector<float> value, int steps) {
  for (int t = 0; t < steps; ++t) {
    float mean = 0;
    for (float part : value) mean += part;
    for (float& own : value) own = (own + mean / float(value.size())) / 2;
  }
  return value;
}

void check_exchanged(const GlobalBuffer<float>& in, const GlobalBuffer<float>& out, size_t group, int steps) {
  for (size_t first = 0; first < in.size(); first += group) {
    const auto expected = exchanged(std::vector<float>(in.data() + first, in.data() + first + group), steps);
    for (size_t i = 0; i < group; ++i) CHECK(out[first + i] == expected[i]);
  }
}

template <Plant P>
void run_exchange_in_cluster(unsigned clusters = 1) {
  constexpr int kSteps = 6;
  constexpr unsigned kThreads = 32, kCluster = 4, kAll = kThreads * kCluster;
  const auto in = ramp(clusters * kAll);
  GlobalBuffer<float> out(in.size(), "out");
  LaunchConfig config = blocks(clusters * kCluster, kThreads, 2 * kAll * int(sizeof(float)) + 16);
  config.cluster = kCluster;
  launch(config, nullptr, cuda::exchange_in_cluster<P>, in.data(), out.data(), kSteps);
  check_exchanged(in, out, kAll, kSteps);
}

template <Plant P>
void run_exchange_in_grid() {
  constexpr int kSteps = 4;
  constexpr unsigned kThreads = 32, kBlocks = 4;
  const auto in = ramp(kBlocks * kThreads);
  GlobalBuffer<float> out(in.size(), "out"), h(2 * in.size(), "h", Contents::unwritten);
  GlobalBuffer<uint32_t> counter(1, "counter");
  counter[0] = 0;
  LaunchConfig config = blocks(kBlocks, kThreads);
  config.cooperative = true;
  launch(config, nullptr, cuda::exchange_in_grid<P>, in.data(), h.data(), counter.data(), out.data(), kSteps);
  check_exchanged(in, out, in.size(), kSteps);
}

template <Plant P>
void run_hand_over() {
  constexpr int kTiles = 7;
  const auto in = ramp(32 * kTiles);
  GlobalBuffer<float> out(in.size(), "out");
  launch(blocks(1, 64, 256 + 32), nullptr, cuda::hand_over<P>, in.data(), out.data(), kTiles);
  for (size_t i = 0; i < in.size(); ++i) CHECK(out[i] == 2 * in[i]);
}

TEST_CASE("right protocols are right under every schedule") {
  under_all_schedules(3, [] {
    run_sum_rows<Plant::none>();
    run_add_neighbours<Plant::none>();
    run_exchange_in_cluster<Plant::none>(3);
    run_exchange_in_grid<Plant::none>();
    run_hand_over<Plant::none>();
  });
}

TEST_CASE("and without the race detector") {
  under_all_schedules(1, [] {
    schedule().races = false;
    run_sum_rows<Plant::none>();
    run_add_neighbours<Plant::none>();
    run_exchange_in_cluster<Plant::none>(3);
    run_exchange_in_grid<Plant::none>();
    run_hand_over<Plant::none>();
  });
}

TEST_CASE("the grid's barrier") {
  under_all_schedules(3, [] {
    const auto in = ramp(3 * 64);
    GlobalBuffer<float> out(in.size(), "out"), h(2 * in.size(), "h", Contents::unwritten);
    LaunchConfig config = blocks(3, 64);
    config.cooperative = true;
    launch(config, nullptr, cuda::exchange_by_grid_sync, in.data(), h.data(), out.data(), 4);
    check_exchanged(in, out, in.size(), 4);
    config.cooperative = false;
    CHECK_THROWS_AS(launch(config, nullptr, cuda::exchange_by_grid_sync, in.data(), h.data(), out.data(), 4),
                    Fault);
  });
}

TEST_CASE("mistakes within a block are reported") {
  using Kind = FaultKind;
  const char* file = "kernels.h";
  must_report({Kind::race}, file, 2, run_sum_rows<Plant::no_sync>);
  must_report({Kind::barrier_divergence}, file, 2, run_sum_rows<Plant::diverges>);
  must_report({Kind::barrier_divergence}, file, 1, run_sum_rows<Plant::exits_early>);
  must_report({Kind::shared_bounds}, file, 1, run_sum_rows<Plant::writes_beyond>);
  must_report({Kind::shared_bounds}, file, 1, run_sum_rows<Plant::reads_beyond>);
  must_report({Kind::unwritten}, file, 1, run_sum_rows<Plant::reads_unwritten>);
}

TEST_CASE("mistakes with asynchronous copies are reported") {
  using Kind = FaultKind;
  const char* file = "kernels.h";
  must_report({Kind::race}, file, 2, run_add_neighbours<Plant::no_copy_wait>);
  must_report({Kind::race}, file, 2, run_add_neighbours<Plant::waits_for_fewer>);
  must_report({Kind::race, Kind::unwritten}, file, 1, run_add_neighbours<Plant::no_sync>);
  must_report({Kind::writes_in_flight}, file, 1, run_add_neighbours<Plant::exits_with_copy>);
  must_report({Kind::global_bounds}, file, 1, run_add_neighbours<Plant::source_beyond>);
}

TEST_CASE("mistakes within a cluster are reported") {
  using Kind = FaultKind;
  const char* file = "kernels.h";
  // Whoever comes first meets a peer that may not run, or its own mbarriers before they are initialised.
  must_report({Kind::peer_not_running, Kind::mbarrier_state, Kind::race}, file, 1,
              [] { run_exchange_in_cluster<Plant::no_first_sync>(); });
  must_report({Kind::writes_in_flight, Kind::peer_not_running}, file, 1,
              [] { run_exchange_in_cluster<Plant::no_last_sync>(); });
  must_report({Kind::mbarrier_state}, file, 2, [] { run_exchange_in_cluster<Plant::no_fence>(); });
  must_report({Kind::race}, file, 1, [] { run_exchange_in_cluster<Plant::one_buffer>(); });
  must_report({Kind::mbarrier_phase, Kind::race, Kind::mbarrier_state}, file, 1,
              [] { run_exchange_in_cluster<Plant::stale_phase>(); });
  must_report({Kind::mbarrier_phase, Kind::deadlock}, file, 1,
              [] { run_exchange_in_cluster<Plant::future_phase>(); });
  must_report({Kind::tx_count}, file, 1, [] { run_exchange_in_cluster<Plant::expects_more>(); });
  must_report({Kind::tx_count, Kind::race, Kind::unwritten, Kind::mbarrier_state}, file, 1,
              [] { run_exchange_in_cluster<Plant::expects_less>(); });
}

TEST_CASE("mistakes between the blocks of a grid are reported") {
  using Kind = FaultKind;
  const char* file = "kernels.h";
  must_report({Kind::race}, file, 2, run_exchange_in_grid<Plant::one_buffer>);
  must_report({Kind::race}, file, 2, run_exchange_in_grid<Plant::relaxed_counter>);
  must_report({Kind::livelock}, file, 1, run_exchange_in_grid<Plant::counts_too_far>);
  must_report({Kind::livelock}, file, 1, run_exchange_in_grid<Plant::spins_by_hand>);
}

TEST_CASE("mistakes between producer and consumer are reported") {
  using Kind = FaultKind;
  const char* file = "kernels.h";
  must_report({Kind::mbarrier_state, Kind::race}, file, 1, run_hand_over<Plant::no_sync>);
  must_report({Kind::race, Kind::mbarrier_phase, Kind::unwritten}, file, 1,
              run_hand_over<Plant::ignores_release>);
  must_report({Kind::deadlock}, file, 1, run_hand_over<Plant::never_releases>);
}

}  // namespace
}  // namespace emulation
}  // namespace rnnfused
