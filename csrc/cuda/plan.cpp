#include "cuda/plan.h"

#include <algorithm>
#include <limits>
#include <optional>

namespace rnnfused::cuda {
namespace {

constexpr Index kMaxGridRows = 65535;
constexpr Index kRebuiltParts = 8;

// What a step costs on an H200, one eight of the batch and two (docs/gpu.md). Clusters that wait for others
// to end make it cost as often as much, where a product of the whole batch takes hardly longer: beyond the
// most that is allowed, for blocks that are alone and for clusters, the stepwise driver is faster.
constexpr Index kStepCost[] = {0, 4, 7};
constexpr Index kMostCost[] = {32, 16};

Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }

// With one warp's many tiles a block that is alone takes longer than a cluster that shares them, by estimate.
constexpr int kMostTiles = 2;

// The first depth that holds the units decides between block and cluster; the batch how many eights a cluster
// takes, on which no bit of a result depends. `slow`: kernels that are for devices without clusters. Returns
// whether the device has any for the layer, though the batch may be too large for all of them.
bool find_resident(const PlanInput& in, bool slow, std::optional<Resident>& best) {
  const ResidentKernels kernels = resident_kernels(in.unit_rows, in.type);
  const Products products = in.type == Type::f32 && !in.allows_tf32 ? Products::split : Products::rounded;
  Index least = 0;
  int depth = 0;
  for (int k = 0; k < kernels.count; ++k) {
    const ResidentKernel& kernel = kernels.all[k];
    if (kernels.products(k) != products) continue;
    if (depth != 0 && kernel.depth != depth) break;
    if (kernel.depth < in.shape.hidden || (kernel.row_tiles > kMostTiles && !slow)) continue;
    if (kernel.exchange == Exchange::cluster && in.arch < 900) continue;
    Resident launch{k, 1, ceil_div(in.shape.batch, kEight * kernel.eights)};
    if (kernel.exchange == Exchange::cluster) {
      launch.cluster = int(ceil_div(in.shape.hidden, kernel.block_units(in.unit_rows)));
      if (launch.cluster == 1) continue;  // an asynchronous store needs a peer
    }
    const Index active = in.active_clusters(launch);
    if (active <= 0) continue;
    depth = kernel.depth;
    const Index waves = ceil_div(launch.slices * in.directions, active);
    const Index cost = waves * kStepCost[kernel.eights];
    if (cost > kMostCost[int(kernel.exchange)] || (least != 0 && cost >= least)) continue;
    best = launch;
    least = cost;
  }
  return depth != 0;
}

std::optional<Resident> find_resident(const PlanInput& in) {
  if (!in.allows_resident || in.shape.projected() || in.shape.rows() == 0 || in.shape.hidden == 0) return {};
  // The kernels count in 32 bits.
  const Index row = std::max(in.accumulators, in.directions) * in.shape.hidden;
  if (std::max(in.shape.rows(), in.shape.batch * row) > std::numeric_limits<int>::max()) return {};
  std::optional<Resident> best;
  if (!find_resident(in, false, best)) find_resident(in, true, best);
  return best;
}

}  // namespace

const char* name_of(Driver driver) {
  switch (driver) {
    case Driver::stepwise:
      return "stepwise";
    case Driver::resident:
      return "resident";
  }
  return "unknown";
}

Plan make_plan(const PlanInput& in) {
  const Index wide = wide_units(in.type);
  const bool whole = in.shape.hidden % wide == 0 && in.shape.output % wide == 0;
  const Index row_bytes =
      std::max<Index>(1, in.directions * in.accumulators * in.shape.hidden * bytes_of(in.gates_type));
  const Index rows = in.shape.rows();
  Index chunk = rows;
  if (in.gates != Gates::taped) chunk = std::min(chunk, in.chunk_bytes / row_bytes);
  // What rebuilds gates does it to save memory: a part of the rows at a time, also where all would fit.
  if (in.gates == Gates::rebuilt) chunk = std::min(chunk, (rows + kRebuiltParts - 1) / kRebuiltParts);
  chunk = std::min(rows, std::max(in.shape.batch, chunk));
  Plan plan{Driver::stepwise, int(in.aligned && whole ? wide : 1), chunk, {}};
  if (const auto resident = find_resident(in)) plan.driver = Driver::resident, plan.resident = *resident;
  return plan;
}

Geometry geometry(Index rows, Index units, int per_thread) {
  const Index threads = std::max<Index>(1, (units + per_thread - 1) / per_thread);
  unsigned x = 1;
  while (x < kBlockThreads && Index(x) < threads) x *= 2;
  const unsigned y = kBlockThreads / x;
  const Index grid_y = std::clamp<Index>((rows + y - 1) / y, 1, kMaxGridRows);
  return {unsigned((threads + x - 1) / x), unsigned(grid_y), x, y};
}

}  // namespace rnnfused::cuda
