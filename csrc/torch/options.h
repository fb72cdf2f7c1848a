// One description of a layer, or of layers over one another: made once from the text that Python and traced
// graphs carry (rnnfused/_layer.py writes it), and passed on whole.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/variation.h"
#include "cpu/kernels.h"

#define RNNFUSED_API __attribute__((visibility("default")))

namespace rnnfused {

// Of a direction's weights: torch.nn's, then what options bring, where the first norm is that of what x
// feeds, or of everything.
enum Slot : int {
  kWeightIh,
  kWeightHh,
  kBiasIh,
  kBiasHh,
  kWeightHr,
  kPeephole,
  kNormIhWeight,
  kNormIhBias,
  kNormHhWeight,
  kNormHhBias,
  kNormCWeight,
  kNormCBias,
  kSlots
};
// Whether that is what the products multiply with.
inline bool is_matrix_slot(int slot) { return slot <= kWeightHh || slot == kWeightHr; }
constexpr int kScaleSlots = 3;  // of the scales of W_ih, W_hh, W_hr

struct LayerOptions {
  std::string text;  // "lstm layers=2 bidirectional"
  CellId cell;       // of a cell that only the stage has (Maths), any
  CellInfo info;
  std::string kind;  // "LSTM", "LSTMCell": for messages

  int64_t layers = 1;
  int directions = 1;
  bool batch_first = false;
  bool biases = true;
  bool projected = false;  // W_hr follows the other weights
  bool recompute = false;
  bool cells = false;  // c of every step is an output, too: that of the last layer
  bool step = false;   // a cell: input and states without a time dimension, and no output beside the states
  bool int8 = false;   // matrices are of 8 bits; the scales of their rows follow all other weights

  // What no layer of torch.nn's has (docs/cells.md).
  bool varied = false;
  std::optional<Maths> own_maths;  // of cells that are none of torch.nn's
  bool peephole = false, coupled_gates = false;
  bool reset_before = false;  // of the GRU: before the product of its last gate
  int64_t num_heads = 1;      // W_hh is one matrix for each, [k, G H / k, H / k]
  bool drawn = false;         // as in training: the last of all params has the layers' seeds
  GateNorm gate_norm = GateNorm::none;
  CellNorm cell_norm = CellNorm::none;
  double update_bias = 0, zoneout[kMaxStates] = {}, recurrent_dropout = 0;
  double cell_clip = INFINITY, gate_clip = INFINITY, grad_clip = INFINITY;

  std::vector<int> slots;  // those of a layer's weights in one direction, in the order of params

  const LayerOptions* single;  // the same of one layer
  const LayerOptions* inner;   // and of one that is not the last

  // How many states there are, and how many tensors a layer has for one direction.
  size_t states() const { return size_t(info.states); }
  size_t matrices() const { return size_t(2 + projected); }
  size_t params_each() const { return slots.size() + (int8 ? matrices() : 0); }
  size_t params() const { return params_each() * size_t(layers) * size_t(directions) + drawn; }
  Maths maths() const;
  // Vectors that are carried from step to step, and those of them that make up the state after h.
  int state_vectors() const { return own_maths == Maths::slstm ? 4 : info.states; }
  Index second_state(Index hidden) const { return own_maths == Maths::slstm ? 3 * hidden : hidden; }
  bool multiplies() const { return rnnfused::multiplies(maths()); }
  bool attends() const { return rnnfused::attends(maths()); }
  // What the drivers are told of the options; what a call brings is left out.
  template <class T>
  Variation<T> variation() const {
    Variation<T> v{};
    v.maths = maths(), v.gates = info.gates, v.states = state_vectors();
    v.heads = num_heads, v.gate_norm = gate_norm, v.cell_norm = cell_norm;
    v.update_bias = T(update_bias);
    v.gate_clip = T(gate_clip), v.cell_clip = T(cell_clip), v.grad_clip = T(grad_clip);
    for (int state = 0; state < kMaxStates; ++state) v.zoneout[state] = zoneout[state];
    v.recurrent_dropout = recurrent_dropout, v.drawn = drawn;
    return v;
  }
  TapeSize tape_size() const;
  // What the operator returns beside a tape: the output, the final states and c of every step.
  size_t outputs() const { return (step ? 0 : 1) + states() + cells; }
  // Whether one of these is laid out as the input, a row for each of its rows.
  bool is_sequence(size_t output) const {
    return !step && (output == 0 || (cells && output + 1 == outputs()));
  }
};

// The description that the text makes: the name of a cell, then any of layers=N, bidirectional, batch_first,
// no_biases, projected, recompute, cells, step, int8 and the options that LayerConfig in Python has. It lives
// as long as the process. Throws ValueError, naming the word, for a text that makes none.
RNNFUSED_API const LayerOptions& layer_options(std::string_view text);

// The cell of that name; throws ValueError for another.
CellId cell_id(const std::string& name);

}  // namespace rnnfused
