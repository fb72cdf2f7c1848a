// Which threads do what: a pure function of sizes, so that it can be tested and shown.
#pragma once

#include "core/platform.h"
#include "core/tape_size.h"

namespace rnnfused {

// `groups` of `members` threads. A group runs whole streams, one after another; a stream is one direction of
// one shard of the batch in one layer, and waits for nothing but the streams of the layer before that it
// reads. The members of a group split a stream's hidden units and meet at a barrier after every step. `wave`
// layers are under way at once, each a chunk of steps behind the one before it.
struct Plan {
  int groups = 1;
  int members = 1;
  int shards = 1;
  int wave = 1;
  double step_us = 0;  // the model's time for one step of every stream; what the choice was made on

  int threads() const { return groups * members; }
};

struct PlanInput {
  Index steps, batch, input, hidden, output;
  int gates;
  int directions;
  int lanes;    // of a vector
  int bytes;    // of a scalar as it is multiplied
  int threads;  // at most
  bool backward = false;
  int layers = 1;
  int terms = 1;             // of a product that an instruction adds in each lane
  bool shares_batch = true;  // whether groups may take a part of the batch each
};

// Chunks into which a sequence is cut where layers follow each other: each layer more costs the time of one.
constexpr Index kWaveChunks = 16;

// Rows of a stream for which weights are laid out otherwise: it takes a wide tile to hide the latency of fma,
// and what a weight costs to read is not shared by many.
constexpr int kFewRows = 2;
RNNFUSED_HD bool few_rows(Index rows) { return rows <= kFewRows; }
RNNFUSED_HD bool few_rows(const Plan& plan, Index batch) {
  return few_rows((batch + plan.shards - 1) / plan.shards);
}
// Whether there are no more in all steps.
RNNFUSED_HD bool few_inputs(Index rows) { return few_rows(rows); }

// Whether a sequence is too short for packed weights to pay: packing costs about as much as this many rows.
// And an unpacked sum of each row ends in one over a vector's lanes, which only many units hide.
RNNFUSED_HD bool runs_unpacked(Index steps, Index batch, Index hidden) {
  const Index rows = steps * batch;
  return rows <= kUnpackedRows && rows * 8 <= hidden;
}

Plan make_plan(const PlanInput& input);

// What a plan does, in a word: "serial", "partition" (members of one group), "streams" (groups side by side,
// whatever their members) or "wavefront".
const char* mode_of(const Plan& plan);

}  // namespace rnnfused
