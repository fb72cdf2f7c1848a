#include "cpu/plan.h"

#include <algorithm>
#include <cmath>

namespace rnnfused {
namespace {

// Costs in cycles of a server core with 512-bit vectors; only their proportions matter.
constexpr double kCyclesPerUs = 3000;
constexpr double kFma = 1;     // one vector, throughput
constexpr double kLoadL1 = 1;  // one vector of weights, by the level it comes from
constexpr double kLoadL2 = 2;
constexpr double kLoadL3 = 4;
constexpr double kLoadMemory = 9;
constexpr double kL1Bytes = 24 * 1024;
constexpr double kL2Bytes = 800 * 1024;
constexpr double kL3Bytes = 12 * 1024 * 1024;  // shared by all threads, and with the data
constexpr double kEpilogue = 45;               // one vector of one gate
constexpr double kRow = 12;                    // set-up of one row of one block
constexpr double kPack = 12;                   // one vector of weights
constexpr double kBarrier = 700;               // two threads; grows with their number
constexpr double kLine = 10;                   // 64 bytes that another core has written
// Starting and joining a parallel region of two, whose threads still spin from the one before; grows as the
// barrier.
constexpr double kRegion = 5000;

// What it costs threads to meet, in units of what it costs two.
double meeting(int threads) { return threads == 1 ? 0 : 1 + 0.25 * std::log2(double(threads) / 2); }

// What a vector of weights costs, of `bytes` that a thread reads at every step; `all` threads' weights are in
// use at the time. Steps walk the weights forwards and backwards in turn, so that of what does not fit in a
// level a part is still there.
double load_cycles(double bytes, double all) {
  if (bytes < kL1Bytes) return kLoadL1;
  const double in_l2 = std::min(1.0, kL2Bytes / bytes), in_l3 = std::min(1.0, kL3Bytes / all);
  return in_l2 * kLoadL2 + (1 - in_l2) * (in_l3 * kLoadL3 + (1 - in_l3) * kLoadMemory);
}

double step_cycles(const PlanInput& in, Index rows, int groups, int members, int wave) {
  const double blocks = std::ceil(std::ceil(double(in.hidden) / in.lanes) / members);
  const double vectors =
      blocks * in.gates * double(in.output) / in.terms;  // of recurrent weights, this member's
  const double vector_bytes = double(in.lanes * in.bytes * in.terms);
  const double bytes = vectors * vector_bytes;
  const double per_step = blocks * in.gates * double(in.input) / in.terms;  // of input weights
  const double input_bytes = per_step * vector_bytes;
  const double load = load_cycles(bytes, (bytes + input_bytes) * groups * members);
  const double near = std::min(load, kLoadL2);
  const double tiles = std::ceil(double(rows) / 6);
  // Only loads from the near caches hide behind the arithmetic.
  const double product = vectors * (std::max(double(rows) * kFma, tiles * near) + load - near);
  // Of the input projection and of packing, a step bears its share.
  // Layers that follow each other take the input a chunk at a time, and pass over W_ih for each.
  const double passes = in.steps == 1 ? 1 : wave > 1 ? double(kWaveChunks) / double(in.steps) : 0;
  const double input = per_step * std::max(double(rows) * kFma, passes * load);
  const double packing = runs_unpacked(in.steps, in.batch, in.hidden)
                             ? 0
                             : (vectors + per_step) * kPack / double(std::max<Index>(1, in.steps));
  const double epilogue = blocks * double(rows) * (in.gates * kEpilogue + kRow);
  // Members exchange h; in backward the gradients of all gates.
  const double exchanged = double(rows) * double(in.backward ? in.gates * in.hidden : in.output) * in.bytes;
  const double meet =
      kBarrier * meeting(members) + kLine * exchanged / 64 * double(members - 1) / double(members);
  return product + input + packing + epilogue + meet;
}

}  // namespace

Plan make_plan(const PlanInput& in) {
  Plan best;
  double best_cycles = INFINITY;
  const Index blocks = std::max<Index>(1, (in.hidden + in.lanes - 1) / in.lanes);
  const int threads = int(std::max<Index>(1, in.threads));
  const auto consider = [&](int groups, int wave) {
    // A group beyond the directions takes another layer or a share of the batch.
    const int shards = std::max(1, groups / in.directions / wave);
    if (shards > std::max<Index>(1, in.batch) || (shards > 1 && !in.shares_batch)) return;
    const Index rows = (in.batch + shards - 1) / shards;
    const double streams = std::ceil(double(in.layers * in.directions * shards) / groups);
    // The last layer of a wave starts late by a chunk for every layer before it.
    const double late = 1 + double(wave - 1) / kWaveChunks;
    for (int members = 1; groups * members <= threads && members <= blocks; ++members) {
      const double step = streams * late * step_cycles(in, rows, groups, members, wave);
      const double region = kRegion * meeting(groups * members) / double(std::max<Index>(1, in.steps));
      if (step + region < best_cycles) {
        best_cycles = step + region;
        best = Plan{groups, members, shards, wave, step / kCyclesPerUs};
      }
    }
  };
  for (int groups = 1; groups <= threads; ++groups) {
    if (groups <= in.directions || groups % in.directions == 0) consider(groups, 1);
    // What reads both directions of a layer waits for all of it.
    if (in.directions > 1 || in.steps < 2 * kWaveChunks) continue;
    for (int wave = 2; wave <= std::min(in.layers, groups); ++wave) {
      if (groups % wave == 0) consider(groups, wave);
    }
  }
  return best;
}

const char* mode_of(const Plan& plan) {
  if (plan.wave > 1) return "wavefront";
  return plan.groups > 1 ? "streams" : plan.members > 1 ? "partition" : "serial";
}

}  // namespace rnnfused
