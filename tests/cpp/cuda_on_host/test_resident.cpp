// The resident kernels beside the stepwise driver, whose numbers tests/test_emulated.py holds against the
// reference: the same, to the roundings that their orders of sums differ by; and what is left out of their
// protocol is reported.
#include <algorithm>
#include <limits>
#include <set>

#include "cuda/resident_backward.cuh"
#include "cuda/resident_forward.cuh"
#include "driver_case.h"
#include "emulation/machine.h"

namespace rnnfused {
namespace cuda {
namespace {

using emulation::ScopedSchedule;

// A step of a number in 16 bits near 1, or of TF32; so many of them may lie between two orders of a sum that
// is rounded at every step. Split, a float has 22 bits.
double bound(const Problem& p) {
  if (p.type == Type::f32 && !p.allows_tf32) return 8.0 / (1 << 21);
  return 8 * (p.type == Type::bf16 ? 1.0 / 256 : 1.0 / 2048);
}

// Both are rounded to 16 bits along the way, so that errors are of the size of the largest number. `forward`:
// only of what forward gives.
void check_close(const Outcome& got, const Outcome& expected, double most, bool forward = false) {
  REQUIRE(got.arrays.size() == expected.arrays.size());
  for (size_t k = 0; k < got.arrays.size() && !(forward && got.arrays[k].name == "dx"); ++k) {
    double difference = 0, largest = 0;
    for (size_t i = 0; i < got.arrays[k].numbers.size(); ++i) {
      const double x = got.arrays[k].numbers[i], y = expected.arrays[k].numbers[i];
      difference =
          std::isfinite(x) ? std::max(difference, std::fabs(x - y)) : std::numeric_limits<double>::infinity();
      largest = std::max(largest, std::fabs(y));
    }
    CAPTURE(got.arrays[k].name);
    CHECK(difference <= most * largest);
  }
}

void check_same(const Outcome& got, const Outcome& expected) {
  REQUIRE(got.arrays.size() == expected.arrays.size());
  for (size_t k = 0; k < got.arrays.size(); ++k) {
    CAPTURE(got.arrays[k].name);
    CHECK(got.arrays[k].numbers == expected.arrays[k].numbers);
  }
}

// Of the layers of the last call.
uint64_t bank_conflicts() { return emulation::last_launch().ldmatrix_bank_conflicts; }

// Sanitizers make an emulator of thousands of threads slower than anyone would wait for; what they see in
// these cases they see in smaller ones.
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

// Without the search for races, to which other cases are given.
void check_against_stepwise(Problem p) {
  emulation::Schedule schedule = emulation::schedule();
  schedule.races = false;
  const ScopedSchedule scope(schedule);
  CAPTURE(int(p.cell));
  CAPTURE(int(p.type));
  CAPTURE(p.hidden);
  CAPTURE(p.directions);
  CAPTURE(p.batch_sizes[0]);
  CAPTURE(p.batch_sizes.size());
  CAPTURE(p.recompute);
  CAPTURE(p.lengths);
  CAPTURE(p.resets);
  CAPTURE(p.allows_tf32);
  p.allows_resident = false;
  const Outcome stepwise = run(p);
  p.allows_resident = true;
  // A relu may open for one order of a sum and not for another; backward is compared behind one forward.
  const bool has_kink = p.cell == CellId::rnn_relu;
  check_close(run(p), stepwise, bound(p), has_kink);
  CHECK(bank_conflicts() == 0);
  if (!has_kink) return;
  p.only_backward = true;
  check_close(run(p), stepwise, bound(p));
}

// float32 as TF32, and split into what has its bits.
struct Multiplied {
  Type type;
  bool allows_tf32;
};
constexpr Multiplied kMultiplied[] = {
    {Type::f16, true}, {Type::bf16, true}, {Type::f32, true}, {Type::f32, false}};

TEST_CASE("every cell and type, alone in a block: the stepwise driver's results") {
  // 11 sequences: two slices of the batch, of which one has ended before the other.
  const std::vector<Index> padded(4, 11), ragged = {11, 11, 9, 3, 1};
  for (const CellOf& cell : kCells) {
    for (const Multiplied& of : kMultiplied) {
      Problem p{cell.id, cell.gates, cell.states, of.type, ragged, 2, 5, 40, 40, false};
      p.allows_tf32 = of.allows_tf32;
      check_against_stepwise(p);
      p.batch_sizes = padded;
      p.recompute = true;
      p.resets = true;
      check_against_stepwise(p);
      p.hidden = p.output = 7;
      p.lengths = true;
      check_against_stepwise(p);
    }
  }
}

TEST_CASE("one step, and many") {
  for (const CellOf& cell : kCells) {
    for (const Index steps : {1, 2, 3, 21}) {
      check_against_stepwise({cell.id, cell.gates, cell.states, Type::bf16,
                              std::vector<Index>(size_t(steps), 3), 2, 5, 24, 24, false});
    }
  }
}

TEST_CASE("the larger block, and clusters of two blocks and more" * doctest::skip(kSanitized)) {
  for (const CellOf& cell : kCells) {
    const Index blocks = cell.gates == 1 ? 130 : 72;
    {
      // A device without clusters has one block for all units.
      emulation::Schedule schedule = emulation::schedule();
      schedule.arch = 800;
      const ScopedSchedule scope(schedule);
      check_against_stepwise({cell.id, cell.gates, cell.states, Type::bf16, {9, 9, 4}, 1, 5, 122, 122, true});
    }
    Problem p{cell.id, cell.gates, cell.states, Type::f32, {9, 9, 4}, 2, 5, blocks, blocks, true};
    for (const bool tf32 : {true, false}) {
      p.allows_tf32 = tf32;
      check_against_stepwise(p);
    }
  }
  check_against_stepwise({CellId::lstm, 4, 2, Type::f16, {17, 17, 4}, 1, 5, 136, 136, false});
}

TEST_CASE("a cluster of many blocks; two eights of the batch give the same bits as one" *
          doctest::skip(kSanitized)) {
  Problem p{CellId::lstm, 4, 2, Type::bf16, {17, 17, 9}, 1, 5, 200, 200, false};
  p.allows_resident = true;
  emulation::Schedule schedule = emulation::schedule();
  schedule.races = false;
  Outcome of_one, of_two;
  {
    schedule.active_clusters = 3;  // three clusters of one eight at once
    const ScopedSchedule scope(schedule);
    of_one = run(p);
  }
  {
    schedule.active_clusters = 2;  // two of two, or two turns
    const ScopedSchedule scope(schedule);
    of_two = run(p);
  }
  check_same(of_one, of_two);
  p.hidden = p.output = 330;
  p.batch_sizes = {3, 3, 2};
  for (const CellOf& cell : kCells) {
    p.cell = cell.id, p.gates = cell.gates, p.states = cell.states;
    check_against_stepwise(p);
  }
}

TEST_CASE("weights that lie in shared memory where registers do not suffice" * doctest::skip(kSanitized)) {
  for (const CellOf& cell : kCells) {
    if (cell.id == CellId::rnn_relu) continue;
    check_against_stepwise({cell.id, cell.gates, cell.states, Type::bf16, {3, 2}, 1, 5, 518, 518, false});
  }
  for (const bool tf32 : {true, false}) {
    const Index hidden = tf32 ? 260 : 134;
    Problem p{CellId::lstm, 4, 2, Type::f32, {3, 2}, 1, 5, hidden, hidden, false};
    p.allows_tf32 = tf32;
    check_against_stepwise(p);
  }
}

TEST_CASE("where the device holds no cluster, or has none, layers run step by step") {
  Problem p{CellId::lstm, 4, 2, Type::bf16, {3, 3}, 1, 5, 200, 200, false};
  const Outcome stepwise = run(p);
  p.allows_resident = true;
  emulation::Schedule schedule = emulation::schedule();
  for (const int arch : {800, 900}) {
    schedule.arch = arch;
    schedule.active_clusters = arch == 800 ? 16 : 0;
    const ScopedSchedule scope(schedule);
    check_same(run(p), stepwise);
  }
}

TEST_CASE("the same bits in every order of threads and deliveries" * doctest::skip(kSanitized)) {
  for (const CellOf& cell : kCells) {
    const Index hidden = cell.gates == 1 ? 130 : 72;
    Problem p{cell.id, cell.gates, cell.states, Type::f32, {5, 5, 4, 1}, 1, 3, hidden, hidden, false};
    p.allows_resident = p.allows_tf32 = true;
    const Outcome first = run(p);
    emulation::under_all_schedules(1, [&] { check_same(run(p), first); });
  }
}

// ---- What a protocol must not leave out

// Guarded memory of a layer of 64 units on two blocks.
template <class T>
struct TwoBlocks {
  static constexpr Index kSteps = 6, kBatch = 8, kHidden = 64, kRows = kSteps * kBatch;
  Buffers memory;
  Walk walk{kSteps, kBatch, nullptr, nullptr, nullptr, 0, kSteps};
  static constexpr Type type = TypeOf<T>::value;

  T* numbers(Index n) { return static_cast<T*>(memory.filled(type, n)); }
  float* floats(Index n) { return static_cast<float*>(memory.filled(Type::f32, n)); }

  LaunchConfig config(size_t bytes) const {
    LaunchConfig launch;
    launch.cluster = 2;
    launch.grid = {2, 1, 1};
    launch.block = {256u, 1, 1};
    launch.shared_bytes = int(bytes);
    return launch;
  }

  // What both ways are told.
  template <class Cell, class Arguments>
  Arguments arguments() {
    Arguments s{};
    s.walk = walk, s.hidden = kHidden, s.directions = 1;
    s.weights = numbers(Cell::gates * kHidden * kHidden);
    s.gates = numbers(kRows * Cell::accumulators * kHidden);
    s.gates_stride = kRows * Cell::accumulators * kHidden;
    s.cell_stride = kRows * kHidden;
    return s;
  }

  template <class Cell, ForwardFault F>
  void forward() {
    auto s = arguments<Cell, ResidentForward<Cell, T>>();
    s.h = numbers(kBatch * kHidden), s.c = floats(kBatch * kHidden), s.y = numbers(kRows * kHidden);
    using Sizes = ForwardSizes<Cell, T, 256, 1, 1, Exchange::cluster, 8, 32, Products::rounded>;
    launch(config(Sizes::bytes), nullptr,
           &resident_forward<Cell, T, 256, 1, 1, Exchange::cluster, 8, 32, Products::rounded, F>, s);
  }
  template <class Cell, BackwardFault F>
  void backward() {
    auto s = arguments<Cell, ResidentBackward<Cell, T>>();
    s.gradients_stride = s.gates_stride;
    s.cell = floats(kRows * kHidden);
    s.y = numbers(kRows * kHidden), s.dy = numbers(kRows * kHidden);
    s.h0 = numbers(kBatch * kHidden), s.c0 = floats(kBatch * kHidden);
    s.dh = floats(kBatch * kHidden), s.dc = floats(kBatch * kHidden);
    s.gradients = numbers(kRows * Cell::accumulators * kHidden);
    using Sizes = BackwardSizes<Cell, T, 256, 1, 1, Exchange::cluster, 8, 32, Products::rounded>;
    launch(config(Sizes::bytes(2)), nullptr,
           &resident_backward<Cell, T, 256, 1, 1, Exchange::cluster, 8, 32, Products::rounded, F>, s);
  }
};

// Whether body() ends by a fault under every schedule.
template <class Body>
void must_be_reported(const std::string& fault, Body body) {
  CAPTURE(fault);
  emulation::under_all_schedules(2, [&] {
    bool reported = false;
    try {
      body();
    } catch (const emulation::Fault&) {
      reported = true;
    }
    CHECK(reported);
  });
}

using Lstm = RNNFUSED_ISA::Lstm;

template <ForwardFault F>
void must_be_reported(const char* name) {
  must_be_reported(name, [] { TwoBlocks<BFloat16>().forward<Lstm, F>(); });
}
template <BackwardFault F>
void must_be_reported(const char* name) {
  must_be_reported(name, [] { TwoBlocks<BFloat16>().backward<Lstm, F>(); });
}

TEST_CASE("nothing is reported of the protocol as it is") {
  emulation::under_all_schedules(2, [] {
    TwoBlocks<BFloat16>().forward<Lstm, ForwardFault::none>();
    TwoBlocks<BFloat16>().backward<Lstm, BackwardFault::none>();
  });
}

TEST_CASE("what forward's protocol leaves out is reported") {
  must_be_reported<ForwardFault::no_first_sync>("no first barrier of the cluster");
  must_be_reported<ForwardFault::no_last_sync>("no last barrier of the cluster");
  must_be_reported<ForwardFault::one_buffer>("one buffer of h");
  must_be_reported<ForwardFault::no_warp_sync>("no barrier of the warp before it sends");
  must_be_reported<ForwardFault::no_arrival>("no wait for the other warps' rows");
  must_be_reported<ForwardFault::one_result>("one buffer of results");
  must_be_reported<ForwardFault::two_inputs>("two buffers of inputs");
  must_be_reported<ForwardFault::no_arm>("never armed");
}

TEST_CASE("what backward's protocol leaves out is reported") {
  must_be_reported<BackwardFault::no_block_sync>("no barrier between gradients and product");
  must_be_reported<BackwardFault::one_partial>("one buffer of partial sums");
  must_be_reported<BackwardFault::one_gradient>("one buffer of gradients");
  must_be_reported<BackwardFault::no_last_wait>("no wait for the last sums");
  must_be_reported<BackwardFault::no_arm>("never armed");
}

}  // namespace
}  // namespace cuda
}  // namespace rnnfused
