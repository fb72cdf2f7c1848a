// Which threads do what: a pure function of sizes, so that it can be tested and shown.
#pragma once

#include "core/platform.h"
#include "core/sequence.h"

namespace rnnfused {

// `groups` of `members` threads. A group runs whole streams, one after another; a stream is one direction of
// one shard of the batch, and streams never wait for each other. The members of a group split a stream's
// hidden units and meet at a barrier after every step.
struct Plan {
  int groups = 1;
  int members = 1;
  int shards = 1;
  double step_us = 0;  // the model's time for one step of every stream; what the choice was made on

  int threads() const { return groups * members; }
};

struct PlanInput {
  Index steps, batch, input, hidden, output;
  int gates;
  int directions;
  int lanes;    // of a vector
  int bytes;    // of a scalar
  int threads;  // at most
  bool backward = false;
};

// Whether a sequence is too short for packed weights to pay: packing costs about as much as this many rows.
RNNFUSED_HD bool runs_unpacked(Index steps, Index batch) { return steps * batch <= 8; }

Plan make_plan(const PlanInput& input);

// Rows of shard s are [first, last) of every step's batch.
RNNFUSED_HD Index shard_first(Index batch, int shards, int s) { return batch * s / shards; }

}  // namespace rnnfused
