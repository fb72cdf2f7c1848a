#include "cuda/plan.h"

#include <algorithm>

namespace rnnfused::cuda {
namespace {

constexpr Index kMaxGridRows = 65535;
constexpr Index kRebuiltParts = 8;

}  // namespace

const char* name_of(Driver driver) {
  switch (driver) {
    case Driver::stepwise:
      return "stepwise";
  }
  return "unknown";
}

Plan make_plan(const PlanInput& in) {
  const Index wide = wide_units(in.type);
  const bool whole = in.shape.hidden % wide == 0 && in.shape.output % wide == 0;
  const Index row_bytes =
      std::max<Index>(1, in.directions * in.accumulators * in.shape.hidden * bytes_of(compute_type(in.type)));
  const Index rows = in.shape.rows();
  Index chunk = rows;
  if (in.gates != Gates::taped) chunk = std::min(chunk, in.chunk_bytes / row_bytes);
  // What rebuilds gates does it to save memory: a part of the rows at a time, also where all would fit.
  if (in.gates == Gates::rebuilt) chunk = std::min(chunk, (rows + kRebuiltParts - 1) / kRebuiltParts);
  chunk = std::min(rows, std::max(in.shape.batch, chunk));
  return {Driver::stepwise, int(in.aligned && whole ? wide : 1), chunk};
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
