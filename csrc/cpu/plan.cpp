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
constexpr double kLoadL3 = 7;
constexpr double kL1Bytes = 24 * 1024;
constexpr double kL2Bytes = 800 * 1024;
constexpr double kEpilogue = 45;   // one vector of one gate
constexpr double kRow = 12;        // set-up of one row of one block
constexpr double kPack = 12;       // one vector of weights
constexpr double kBarrier = 700;   // two threads; grows with their number
constexpr double kRegion = 20000;  // starting and joining a parallel region of two; grows as the barrier

// What it costs threads to meet, in units of what it costs two.
double meeting(int threads) { return threads == 1 ? 0 : 1 + 0.25 * std::log2(double(threads) / 2); }

double step_cycles(const PlanInput& in, Index rows, int members) {
  const double blocks = std::ceil(std::ceil(double(in.hidden) / in.lanes) / members);
  const double vectors = blocks * in.gates * double(in.output);  // of recurrent weights, this member's
  const double bytes = vectors * in.lanes * in.bytes;
  const double load = bytes < kL1Bytes ? kLoadL1 : bytes < kL2Bytes ? kLoadL2 : kLoadL3;
  const double tiles = std::ceil(double(rows) / 6);
  const double product =
      std::max(vectors * double(rows) * kFma, vectors * (load + (tiles - 1) * std::min(load, kLoadL2)));
  // Of the input projection and of packing, a step bears its share.
  const double per_step = blocks * in.gates * double(in.input);
  const double input = per_step * std::max(double(rows) * kFma, in.steps == 1 ? load : 0.0);
  const double packing = runs_unpacked(in.steps, in.batch)
                             ? 0
                             : (vectors + per_step) * kPack / double(std::max<Index>(1, in.steps));
  const double epilogue = blocks * double(rows) * (in.gates * kEpilogue + kRow);
  const double barrier = kBarrier * meeting(members);
  return product + input + packing + epilogue + barrier;
}

}  // namespace

Plan make_plan(const PlanInput& in) {
  Plan best;
  double best_cycles = INFINITY;
  const Index blocks = (in.hidden + in.lanes - 1) / in.lanes;
  const int threads = int(std::max<Index>(1, in.threads));
  for (int groups = 1; groups <= threads; ++groups) {
    // A group beyond the directions takes a share of the batch.
    if (groups > in.directions && groups % in.directions != 0) continue;
    const int shards = std::max(1, groups / in.directions);
    if (shards > std::max<Index>(1, in.batch)) break;
    for (int members = 1; groups * members <= threads && members <= std::max<Index>(1, blocks); ++members) {
      const double streams = std::ceil(double(in.directions * shards) / groups);
      const Index rows = (in.batch + shards - 1) / shards;
      const double step = streams * step_cycles(in, rows, members);
      const double region = kRegion * meeting(groups * members) / double(std::max<Index>(1, in.steps));
      if (step + region < best_cycles) {
        best_cycles = step + region;
        best = Plan{groups, members, shards, step / kCyclesPerUs};
      }
    }
  }
  return best;
}

}  // namespace rnnfused
