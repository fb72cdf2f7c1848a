// One description of a layer, or of layers over one another: made once from the text that Python and traced
// graphs carry (rnnfused/_layer.py writes it), and passed on whole.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "cpu/kernels.h"

#define RNNFUSED_API __attribute__((visibility("default")))

namespace rnnfused {

struct LayerOptions {
  std::string text;  // "lstm layers=2 bidirectional"
  CellId cell;
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

  const LayerOptions* single;  // the same of one layer
  const LayerOptions* inner;   // and of one that is not the last

  // How many states there are, and how many tensors a layer has for one direction.
  size_t states() const { return size_t(info.states); }
  size_t matrices() const { return size_t(2 + projected); }
  size_t params_each() const { return matrices() * (int8 ? 2 : 1) + 2 * size_t(biases); }
  size_t params() const { return params_each() * size_t(layers) * size_t(directions); }
  // What the operator returns beside a tape: the output, the final states and c of every step.
  size_t outputs() const { return (step ? 0 : 1) + states() + cells; }
  // Whether one of these is laid out as the input, a row for each of its rows.
  bool is_sequence(size_t output) const {
    return !step && (output == 0 || (cells && output + 1 == outputs()));
  }
};

// The description that the text makes: the name of a cell, then any of layers=N, bidirectional, batch_first,
// no_biases, projected, recompute, cells, step, int8. It lives as long as the process. Throws ValueError,
// naming the word, for a text that makes none.
RNNFUSED_API const LayerOptions& layer_options(std::string_view text);

// The cell of that name; throws ValueError for another.
CellId cell_id(const std::string& name);

}  // namespace rnnfused
