// What a layer does beyond torch.nn's equations (docs/cells.md). Everything is a value at run time: no option
// multiplies what is compiled.
#pragma once

#include "core/sequence.h"
#include "core/tape_size.h"

namespace rnnfused {

// What turns the sums of the two products into states.
enum class Maths : int {
  rnn_tanh,
  rnn_relu,
  lstm,
  coupled_lstm,
  gru,
  reset_gru,
  update_gru,
  augru,
  agru,
  slstm,
  indrnn,
  ligru,
  mingru,
  minlstm
};

// Whether h enters the gates by a product with a matrix.
RNNFUSED_HD bool multiplies(Maths maths) { return maths < Maths::indrnn || maths == Maths::ligru; }

// Whether each row's weight follows the input's features, and says how much of h it changes.
RNNFUSED_HD bool attends(Maths maths) { return maths == Maths::augru || maths == Maths::agru; }

// Of the sums of all gates: none; one for those that x feeds and one for those that h feeds; one for both;
// one for those that x feeds alone.
enum class GateNorm : int { none, separate, joint, input };
// Of the LSTM's c: none; of what is carried on; only of what h is made from.
enum class CellNorm : int { none, carried, output };

// Vectors that a cell carries from step to step. Beside h all are parts of what callers have for c.
constexpr int kMaxStateVectors = 4;

// How many scalars of a row hold the mean and scale of each norm, of what x feeds, of what h feeds, and of c.
constexpr Index kNormScalars = 8;

// What a variation brings, or its gradients: torch's parameters, [rows, H], contiguous; null where one is not
// there, or not wanted.
template <class T>
struct VariationParameters {
  T* unit;                           // of the IndRNN, in place of W_hh
  T* peephole;                       // i, f, o; coupled i, o
  T *norm_ih_weight, *norm_ih_bias;  // or those of the joint norm
  T *norm_hh_weight, *norm_hh_bias;
  T *norm_c_weight, *norm_c_bias;
};
// One layer in one direction.
template <class T>
struct Variation : VariationParameters<const T> {
  Maths maths;
  int gates, states;   // states: vectors, h among them
  Index hidden;        // H
  Index unit_scalars;  // H in whole vectors: rows of a gate in the products' matrices
  Index heads;         // parts of the units that W_hh does not join; 0 and 1: it joins all
  GateNorm gate_norm;
  CellNorm cell_norm;
  T update_bias;
  T gate_clip, cell_clip, grad_clip;              // infinite for none
  double zoneout[kMaxStates], recurrent_dropout;  // probabilities
  bool drawn;  // as in training; otherwise zoneout has its mean, and dropout does nothing
  uint64_t seed;
  int direction;
  const Index* numbers;  // of every row, in the caller's order: t B + b; null means that rows are in it
  Index batch;           // B

  // Whether h is multiplied with the reset gate before the product of the last gate, which so comes after the
  // others.
  RNNFUSED_HD bool resets() const { return maths == Maths::reset_gru; }
  RNNFUSED_HD bool attends() const { return rnnfused::attends(maths); }
  RNNFUSED_HD bool multiplies() const { return rnnfused::multiplies(maths); }
  RNNFUSED_HD bool drops() const { return drawn && recurrent_dropout > 0; }
  RNNFUSED_HD bool norms() const { return gate_norm != GateNorm::none || cell_norm != CellNorm::none; }
  RNNFUSED_HD T zoneout_of(int state) const { return state < kMaxStates ? T(zoneout[state]) : T(0); }
  RNNFUSED_HD int peepholes() const { return maths == Maths::coupled_lstm ? 2 : 3; }
  RNNFUSED_HD Index number_of(Index row) const { return numbers ? numbers[row] : row; }
  // Of a row beside the sums: states after h, h as it enters the product where dropout changes it, r h, and
  // the norms (VariedTape in cpu/varied.h).
  RNNFUSED_HD TapeSize tape_size() const {
    return {states - 1 + drops() + resets(), 2 * gates, norms() ? int(kNormScalars) : 0};
  }
};

}  // namespace rnnfused
