// make_plan and geometry of the CUDA back end: what every plan keeps to.
#include <doctest/doctest.h>

#include <algorithm>
#include <initializer_list>
#include <utility>
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
  in.gates = Gates::passing;
  in.gates_type = Type::f32;
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
  for (const Type type : {Type::f32, Type::bf16}) {
    for (const Index steps : {1, 7, 1000}) {
      for (const Index batch : {0, 1, 30, 5000}) {
        for (const Index hidden : {1, 100, 2048}) {
          PlanInput in = input({steps, batch, hidden, hidden}, offsets);
          in.gates_type = type;
          const Index rows = steps * batch, row_bytes = 4 * hidden * bytes_of(type);
          const Index chunk = make_plan(in).chunk_rows;
          CAPTURE(steps);
          CAPTURE(batch);
          CAPTURE(hidden);
          CHECK(chunk <= rows);
          CHECK(chunk >= std::min(rows, batch));
          CHECK((chunk * row_bytes <= kMiB || chunk == batch));
          CHECK((chunk == rows || (std::max(chunk, batch) + 1) * row_bytes > kMiB));
          in.gates = Gates::rebuilt;
          CHECK(make_plan(in).chunk_rows <= chunk);
          CHECK(make_plan(in).chunk_rows <= std::max((rows + 7) / 8, batch));
          CHECK(make_plan(in).chunk_rows >= std::min(rows, batch));
          in.gates = Gates::taped;
          CHECK(make_plan(in).chunk_rows == rows);
        }
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

// A device that holds so many clusters of any kernel.
template <int Clusters>
int holds(const Resident&) {
  return Clusters;
}

PlanInput resident_input(const Sizes& sizes, std::vector<Index>& offsets, int unit_rows, Type type) {
  PlanInput in = input(sizes, offsets);
  in.type = type;
  in.unit_rows = unit_rows;
  in.arch = 900;
  in.allows_resident = in.allows_tf32 = true;
  in.active_clusters = holds<16>;
  return in;
}

TEST_CASE("a resident kernel has room for every unit, and its clusters for every sequence") {
  std::vector<Index> offsets;
  for (const int unit_rows : {1, 4}) {
    for (const auto& [type, tf32] : std::vector<std::pair<Type, bool>>{
             {Type::f32, true}, {Type::f32, false}, {Type::f16, false}, {Type::bf16, true}}) {
      const Products products = type == Type::f32 && !tf32 ? Products::split : Products::rounded;
      for (const Index batch : {1, 8, 9, 64, 100}) {
        for (Index hidden = 1; hidden <= 1100; hidden += 7) {
          PlanInput in = resident_input({5, batch, hidden, hidden}, offsets, unit_rows, type);
          in.allows_tf32 = tf32;
          const Plan plan = make_plan(in);
          const ResidentKernels kernels = resident_kernels(unit_rows, type);
          Index most = 0;
          for (int k = 0; k < kernels.count; ++k) {
            if (kernels.products(k) == products) most = kernels.all[k].depth;
          }
          CAPTURE(unit_rows);
          CAPTURE(hidden);
          CAPTURE(batch);
          if (hidden > most) {
            CHECK(plan.driver == Driver::stepwise);
            continue;
          }
          REQUIRE(plan.driver == Driver::resident);
          const ResidentKernel kernel = kernels.all[plan.resident.kernel];
          CHECK(kernel.depth >= hidden);
          CHECK((kernels.products(plan.resident.kernel) == products));
          CHECK(plan.resident.cluster * kernel.block_units(unit_rows) >= hidden);
          CHECK((plan.resident.cluster - 1) * kernel.block_units(unit_rows) < hidden);
          CHECK(plan.resident.cluster <= 16);
          // st.async needs a peer.
          CHECK((kernel.exchange == Exchange::cluster) == (plan.resident.cluster > 1));
          CHECK(plan.resident.slices * kEight * kernel.eights >= batch);
          // Registers of a thread: 4 to an operand, split 8, and some for the rest.
          const int held =
              std::min(std::max(kernel.held_forward, kernel.held_backward), kernel.operands(type));
          CHECK(held * (products == Products::split ? 8 : 4) <= (kernel.warps == 8 ? 128 : 96));
        }
      }
    }
  }
}

TEST_CASE("what no resident kernel can run, or only in many turns, runs step by step") {
  std::vector<Index> offsets;
  const auto driver = [&](auto change, Sizes sizes = {5, 16, 200, 200}, Type type = Type::bf16) {
    PlanInput in = resident_input(sizes, offsets, 4, type);
    change(in);
    return make_plan(in).driver;
  };
  const auto nothing = [](PlanInput&) {};
  CHECK(driver(nothing) == Driver::resident);
  CHECK(driver(nothing, {5, 16, 200, 100}) == Driver::stepwise);
  CHECK(driver(nothing, {5, 16, 200, 200}, Type::f64) == Driver::stepwise);
  CHECK(driver(nothing, {0, 16, 200, 200}) == Driver::stepwise);
  CHECK(driver(nothing, {5, 0, 200, 200}) == Driver::stepwise);
  CHECK(driver([](PlanInput& in) { in.allows_resident = false; }) == Driver::stepwise);
  CHECK(driver([](PlanInput& in) { in.unit_rows = 0; }) == Driver::stepwise);
  CHECK(driver([](PlanInput& in) { in.active_clusters = holds<0>; }) == Driver::stepwise);
  const auto exact = [](PlanInput& in) { in.allows_tf32 = false; };
  CHECK(driver(exact) == Driver::resident);
  CHECK(driver(exact, {5, 16, 200, 200}, Type::f32) == Driver::resident);
  CHECK(driver(exact, {5, 16, 300, 300}, Type::f32) == Driver::stepwise);
  CHECK(driver(nothing, {5, 16, 300, 300}, Type::f32) == Driver::resident);
  CHECK(driver(nothing, {5, 16, 200, 200}, Type::f32) == Driver::resident);
  // Ampere has no clusters: what one block holds.
  const auto ampere = [](PlanInput& in) { in.arch = 800; };
  CHECK(driver(ampere) == Driver::stepwise);
  CHECK(driver(ampere, {5, 16, 128, 128}) == Driver::resident);
  CHECK(driver(nothing, {5, 5000, 200, 200}) == Driver::stepwise);
}

TEST_CASE("many tiles to a warp are for devices without clusters") {
  std::vector<Index> offsets;
  PlanInput in = resident_input({5, 16, 128, 128}, offsets, 4, Type::bf16);
  CHECK(make_plan(in).resident.cluster == 4);
  in.arch = 800;
  CHECK(make_plan(in).resident.cluster == 1);
  CHECK(make_plan(in).driver == Driver::resident);
  // A batch that is too large for clusters is no reason: it would have other bits than a smaller one.
  for (const Index units : {100, 128}) {
    in = resident_input({5, 768, units, units}, offsets, 4, Type::bf16);
    CHECK(make_plan(in).driver == Driver::stepwise);
    in.arch = 800, in.shape.batch = 16;
    CHECK(make_plan(in).resident.cluster == 1);
    // A device with clusters that can hold none, such as a part of one.
    in.arch = 900, in.active_clusters = [](const Resident& launch) { return launch.cluster == 1 ? 16 : 0; };
    CHECK(make_plan(in).driver == Driver::resident);
    CHECK(make_plan(in).resident.cluster == 1);
  }
}

TEST_CASE("a cluster takes two eights of the batch where that saves turns") {
  std::vector<Index> offsets;
  for (const Index batch : {8, 16, 128, 129, 200, 256}) {
    const PlanInput in = resident_input({5, batch, 200, 200}, offsets, 4, Type::bf16);
    const Plan plan = make_plan(in);
    CAPTURE(batch);
    CHECK(resident_kernels(4, Type::bf16).all[plan.resident.kernel].eights == (batch > 128 ? 2 : 1));
  }
}

}  // namespace
}  // namespace rnnfused::cuda
