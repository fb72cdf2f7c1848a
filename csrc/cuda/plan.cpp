#include "cuda/plan.h"

#include <algorithm>

namespace rnnfused::cuda {
namespace {

constexpr Index kVectorBytes = 16;  // the widest load
constexpr Index kMaxUnits = 4;      // more would spill registers in the wider cells
constexpr Index kMaxGridRows = 65535;

}  // namespace

const char* name_of(Driver driver) {
  switch (driver) {
    case Driver::stepwise:
      return "stepwise";
  }
  return "unknown";
}

Plan make_plan(const PlanInput& in) {
  const Index wide = std::min(kMaxUnits, kVectorBytes / bytes_of(compute_type(in.type)));
  const bool whole = in.shape.hidden % wide == 0 && in.shape.output % wide == 0;
  const Index row_bytes =
      std::max<Index>(1, in.directions * in.accumulators * in.shape.hidden * bytes_of(compute_type(in.type)));
  const Index rows = in.shape.rows();
  return {Driver::stepwise, int(in.aligned && whole ? wide : 1),
          in.taped ? rows : std::min(rows, std::max(in.shape.batch, in.chunk_bytes / row_bytes))};
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
