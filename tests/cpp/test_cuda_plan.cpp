// make_plan and geometry of the CUDA back end: what every plan keeps to.
#include <doctest/doctest.h>

#include <algorithm>
#include <initializer_list>
#include <vector>

#include "cuda/plan.h"

namespace rnnfused::cuda {
namespace {

constexpr Index kMiB = 1 << 20;

struct Sizes {
  Index steps, batch, hidden, output;
};

PlanInput input(const Sizes& sizes, std::vector<Index>& offsets) {
  offsets.clear();
  for (Index t = 0; t <= sizes.steps; ++t) offsets.push_back(t * sizes.batch);
  PlanInput in{};
  in.type = Type::f32;
  in.shape = {sizes.steps, sizes.batch, 40, sizes.hidden, sizes.output, offsets.data(), false};
  in.directions = 1;
  in.accumulators = 4;
  in.aligned = true;
  in.chunk_bytes = kMiB;
  return in;
}

TEST_CASE("a thread takes so many units that it loads 16 bytes, where they come out even") {
  std::vector<Index> offsets;
  PlanInput in = input({5, 3, 64, 64}, offsets);
  for (const Type type : {Type::f32, Type::f16, Type::bf16}) {
    in.type = type;
    CHECK(make_plan(in).units == 4);
  }
  in.type = Type::f64;
  CHECK(make_plan(in).units == 2);
  in.aligned = false;
  CHECK(make_plan(in).units == 1);
  for (const Sizes odd : {Sizes{5, 3, 63, 63}, Sizes{5, 3, 64, 30}, Sizes{5, 3, 66, 66}})
    CHECK(make_plan(input(odd, offsets)).units == 1);
}

TEST_CASE("a chunk holds one step at least, and no more bytes than it may or rows than there are") {
  std::vector<Index> offsets;
  for (const Index steps : {1, 7, 1000}) {
    for (const Index batch : {0, 1, 30, 5000}) {
      for (const Index hidden : {1, 100, 2048}) {
        PlanInput in = input({steps, batch, hidden, hidden}, offsets);
        const Index rows = steps * batch, row_bytes = 4 * hidden * 4;
        const Index chunk = make_plan(in).chunk_rows;
        CAPTURE(steps);
        CAPTURE(batch);
        CAPTURE(hidden);
        CHECK(chunk <= rows);
        CHECK(chunk >= std::min(rows, batch));
        CHECK((chunk * row_bytes <= kMiB || chunk == batch));
        CHECK((chunk == rows || (std::max(chunk, batch) + 1) * row_bytes > kMiB));
        in.taped = true;
        CHECK(make_plan(in).chunk_rows == rows);
      }
    }
  }
}

TEST_CASE("the grid covers every unit; rows are covered by it or by its stride") {
  for (const Index rows : {1, 2, 127, 128, 129, 100000, 10000000}) {
    for (const Index units : {1, 3, 64, 129, 4096, 1000000}) {
      for (const int per_thread : {1, 2, 4}) {
        const Geometry g = geometry(rows, units, per_thread);
        CHECK(g.block_x * g.block_y == kBlockThreads);
        CHECK(Index(g.grid_x) * g.block_x * per_thread >= units);
        CHECK(Index(g.grid_x - 1) * g.block_x * per_thread < units);
        CHECK(g.grid_y >= 1);
        CHECK(g.grid_y <= 65535);
        CHECK((Index(g.grid_y) * g.block_y >= rows || g.grid_y == 65535));
      }
    }
  }
}

}  // namespace
}  // namespace rnnfused::cuda
