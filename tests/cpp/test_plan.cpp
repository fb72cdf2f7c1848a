// make_plan over a grid of sizes: what every plan keeps to, whatever the cost model says.
#include <doctest/doctest.h>

#include <algorithm>
#include <initializer_list>
#include <string>
#include <vector>

#include "core/stream.h"
#include "cpu/plan.h"

namespace rnnfused {
namespace {

using namespace RNNFUSED_ISA;

template <class Body>
void for_inputs(Body body) {
  for (const Index steps : {0, 1, 20, 1000}) {
    for (const Index batch : {0, 1, 2, 7, 64}) {
      for (const Index hidden : {0, 1, 15, 100, 1024}) {
        for (const Index output : {hidden, hidden / 2}) {
          for (const int gates : {1, 3, 4}) {
            for (const int directions : {1, 2}) {
              for (const int lanes : {1, 8, 16}) {
                for (const int threads : {1, 2, 3, 8, 13, 64}) {
                  for (const int layers : {1, 3}) {
                    body({steps, batch, 40, hidden, output, gates, directions, lanes, 4, threads, false,
                          layers});
                  }
                }
              }
            }
          }
        }
      }
    }
  }
}

bool operator==(const Plan& a, const Plan& b) {
  return a.groups == b.groups && a.members == b.members && a.shards == b.shards && a.wave == b.wave &&
         a.step_us == b.step_us;
}

TEST_CASE("a plan fits what it is for") {
  for_inputs([](const PlanInput& in) {
    const Plan plan = make_plan(in);
    const Index blocks = (in.hidden + in.lanes - 1) / in.lanes;
    CAPTURE(in.batch);
    CAPTURE(in.hidden);
    CAPTURE(in.threads);
    CAPTURE(plan.groups);
    CAPTURE(plan.members);
    CAPTURE(plan.shards);
    REQUIRE(plan.groups >= 1);
    REQUIRE(plan.members >= 1);
    REQUIRE(plan.shards >= 1);
    REQUIRE(plan.threads() <= in.threads);
    REQUIRE(plan.members <= (blocks > 1 ? blocks : 1));
    REQUIRE(plan.shards <= (in.batch > 1 ? in.batch : 1));
    REQUIRE(plan.wave >= 1);
    REQUIRE(plan.wave <= in.layers);
    if (in.directions > 1) REQUIRE(plan.wave == 1);  // what reads both directions waits for all of a layer
    REQUIRE(plan.groups <= in.directions * plan.shards * plan.wave);  // no group without a stream
    // The streams of a layer that one thread carries are those of the next layer, a wave aside.
    if (plan.wave > 1) REQUIRE(plan.groups == plan.shards * plan.wave);
    REQUIRE(plan.step_us >= 0);
  });
}

TEST_CASE("the same sizes give the same plan") {
  for_inputs([](const PlanInput& in) { REQUIRE(make_plan(in) == make_plan(in)); });
}

TEST_CASE("small layers stay on one thread") {
  CHECK(make_plan({1, 1, 8, 8, 8, 4, 1, 16, 4, 64}).threads() == 1);
  CHECK(make_plan({100, 1, 16, 16, 16, 4, 1, 16, 4, 64}).threads() == 1);
  CHECK(make_plan({1, 2, 32, 32, 32, 3, 2, 8, 4, 64}).threads() == 1);
}

TEST_CASE("large layers use the threads there are") {
  CHECK(make_plan({100, 64, 1024, 1024, 1024, 4, 1, 16, 4, 8}).threads() == 8);
  CHECK(make_plan({100, 64, 1024, 1024, 1024, 4, 2, 16, 4, 2}).threads() == 2);
}

TEST_CASE("one row of a large layer is split by hidden units, many rows of a small one by rows") {
  const Plan one = make_plan({1000, 1, 1024, 1024, 1024, 4, 1, 16, 4, 4});
  CHECK(one.members > 1);
  CHECK(one.shards == 1);
  CHECK(make_plan({1000, 256, 32, 32, 32, 4, 1, 16, 4, 4}).shards > 1);
}

TEST_CASE("two directions run side by side unless a cache holds the weights of one alone") {
  CHECK(make_plan({100, 16, 64, 64, 64, 4, 2, 16, 4, 2}).groups == 2);
  CHECK(make_plan({100, 1, 1024, 1024, 1024, 4, 2, 16, 4, 2}).members == 2);
  // Backward's members exchange more than forward's.
  CHECK(make_plan({100, 32, 256, 256, 256, 4, 2, 16, 4, 2, true}).groups == 2);
}

TEST_CASE("layers follow each other where one alone does not keep two threads busy") {
  const auto layers = [](Index steps, Index batch, Index hidden, int directions, int count) {
    return make_plan({steps, batch, hidden, hidden, hidden, 4, directions, 16, 4, 2, false, count});
  };
  CHECK(layers(128, 1, 64, 1, 2).wave == 2);
  CHECK(layers(128, 1, 64, 1, 1).wave == 1);
  CHECK(layers(128, 16, 64, 1, 2).shards == 2);  // needs no waiting at all
  CHECK(layers(8, 1, 64, 1, 2).wave == 1);       // too few steps to be a chunk behind
  CHECK(layers(128, 1, 1024, 1, 2).members == 2);
  CHECK(std::string(mode_of(layers(128, 1, 64, 1, 2))) == "wavefront");
  CHECK(std::string(mode_of(layers(128, 16, 64, 1, 2))) == "streams");
  CHECK(std::string(mode_of(layers(128, 1, 1024, 1, 2))) == "partition");
  CHECK(std::string(mode_of(layers(8, 1, 16, 1, 1))) == "serial");
}

// That the shards have every row once, and at every step as many as each other, but for one.
void check_shards(Index batch, const std::vector<Index>& sizes) {
  std::vector<Index> offsets{0};
  for (const Index size : sizes) offsets.push_back(offsets.back() + size);
  const SequenceShape shape{Index(sizes.size()), batch, 1, 1, 1, offsets.data(), false};
  for (const int shards : {1, 2, 3, 7}) {
    std::vector<int> held(size_t(shape.rows()));
    for (Index t = 0; t < shape.steps; ++t) {
      for (int s = 0; s < shards; ++s) {
        const Stream stream(shape, shard_of(shape, shards, s));
        const Index active = stream.active(t);
        CHECK(active >= sizes[size_t(t)] / shards);
        CHECK(active <= sizes[size_t(t)] / shards + 1);
        for (Index b = 0; b < active; ++b) ++held[size_t(stream.row(t, b))];
      }
    }
    CHECK(std::all_of(held.begin(), held.end(), [](int times) { return times == 1; }));
  }
}

TEST_CASE("shards have every row once, and as many at every step") {
  for (const Index batch : {0, 1, 5, 64}) check_shards(batch, {batch, batch, batch});
  check_shards(9, {9, 8, 8, 5, 2, 1, 1});
  check_shards(4, {3, 1});
  check_shards(3, {0});
  check_shards(3, {});
}

}  // namespace
}  // namespace rnnfused
