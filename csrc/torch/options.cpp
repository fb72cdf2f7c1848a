#include "torch/options.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <unordered_map>

#include "cpu/dispatch.h"

namespace rnnfused {
namespace {

const std::map<std::string, bool LayerOptions::*> kFlags = {{"batch_first", &LayerOptions::batch_first},
                                                            {"projected", &LayerOptions::projected},
                                                            {"recompute", &LayerOptions::recompute},
                                                            {"cells", &LayerOptions::cells},
                                                            {"step", &LayerOptions::step},
                                                            {"int8", &LayerOptions::int8},
                                                            {"drawn", &LayerOptions::drawn},
                                                            {"peephole", &LayerOptions::peephole},
                                                            {"coupled_gates", &LayerOptions::coupled_gates},
                                                            {"reset_before", &LayerOptions::reset_before}};
const std::map<std::string, double LayerOptions::*> kNumbers = {
    {"update_bias", &LayerOptions::update_bias},
    {"recurrent_dropout", &LayerOptions::recurrent_dropout},
    {"cell_clip", &LayerOptions::cell_clip},
    {"gate_clip", &LayerOptions::gate_clip},
    {"grad_clip", &LayerOptions::grad_clip}};
const std::map<std::string, GateNorm> kGateNorms = {
    {"separate", GateNorm::separate}, {"input", GateNorm::input}, {"joint", GateNorm::joint}};
const std::map<std::string, CellNorm> kCellNorms = {{"carried", CellNorm::carried},
                                                    {"output", CellNorm::output}};

// Cells that are none of torch.nn's: the stage's alone.
struct StagedCell {
  Maths maths;
  int gates;
  int states = 1;
};
const std::map<std::string, StagedCell> kStagedCells = {
    {"augru", {Maths::augru, 3}},    {"agru", {Maths::agru, 2}},   {"slstm", {Maths::slstm, 4, 2}},
    {"indrnn", {Maths::indrnn, 1}},  {"ligru", {Maths::ligru, 2}}, {"mingru", {Maths::mingru, 2}},
    {"minlstm", {Maths::minlstm, 3}}};

// The whole of the text as a number.
bool read_number(const std::string& text, double& number) {
  char* end = nullptr;
  number = std::strtod(text.c_str(), &end);
  return !text.empty() && *end == '\0';
}

// A word name=value; false for none that there is.
bool read_value(LayerOptions& options, const std::string& name, const std::string& value) {
  double number = 0;
  if (name == "layers") {
    options.layers = read_number(value, number) && number < 1e9 ? int64_t(number) : 0;
    return options.layers > 0 && double(options.layers) == number;
  }
  if (const auto found = kNumbers.find(name); found != kNumbers.end())
    return read_number(value, options.*found->second);
  if (name == "num_heads") {
    if (!read_number(value, number) || !(number >= 1 && number < 1e9)) return false;
    options.num_heads = int64_t(number);
    return double(options.num_heads) == number;
  }
  if (name == "zoneout") {
    const size_t comma = value.find(',');
    return comma != std::string::npos && read_number(value.substr(0, comma), options.zoneout[0]) &&
           read_number(value.substr(comma + 1), options.zoneout[1]);
  }
  if (const auto norm = kGateNorms.find(value); name == "layer_norm" && norm != kGateNorms.end()) {
    options.gate_norm = norm->second;
    return true;
  }
  if (const auto norm = kCellNorms.find(value); name == "cell_norm" && norm != kCellNorms.end()) {
    options.cell_norm = norm->second;
    return true;
  }
  return false;
}

void read_word(LayerOptions& options, const std::string& word) {
  const size_t equals = word.find('=');
  if (const auto flag = kFlags.find(word); flag != kFlags.end()) {
    options.*flag->second = true;
  } else if (word == "bidirectional") {
    options.directions = 2;
  } else if (word == "no_biases") {
    options.biases = false;
  } else {
    const bool is_known =
        equals != std::string::npos && read_value(options, word.substr(0, equals), word.substr(equals + 1));
    TORCH_CHECK_VALUE(is_known, "layer: unknown word '", word, "' in '", options.text, "'");
  }
}

// What the options say of each other, and of the cell.
void check_variation(const LayerOptions& o) {
  const bool is_lstm = o.cell == CellId::lstm, is_gru = o.kind == "GRU" || o.kind == "GRUCell";
  const auto check = [&](bool holds, const char* what) {
    TORCH_CHECK_VALUE(holds, "layer: ", what, ", got '", o.text, "'");
  };
  check(!o.int8, "a layer with options has no weights of 8 bits");
  check(is_lstm || !(o.peephole || o.coupled_gates || o.cell_norm != CellNorm::none || o.zoneout[1] > 0),
        "peephole, coupled_gates, cell_norm and zoneout of c need an LSTM");
  check(is_lstm || !std::isfinite(o.cell_clip), "cell_clip needs an LSTM");
  check(!o.reset_before || (is_gru && o.gate_norm == GateNorm::none),
        "reset_before needs a GRU without norms");
  const bool is_ligru = o.own_maths == Maths::ligru;
  check(!o.own_maths || is_ligru || o.gate_norm == GateNorm::none, "layer_norm is nothing that the cell has");
  check(o.gate_norm != GateNorm::input || is_ligru, "a norm of the input alone needs a LiGRU");
  check(o.own_maths != Maths::slstm || !(o.cells || std::isfinite(o.gate_clip)),
        "cells and gate_clip are nothing that an sLSTM has");
  check(o.num_heads == 1 || !o.own_maths || is_ligru || o.attends() || o.own_maths == Maths::slstm,
        "num_heads is nothing that the cell has");
  check(!o.attends() || (o.layers == 1 && o.directions == 1),
        "a weight for each row needs one layer in one direction");
  check(o.cell_norm == CellNorm::none || o.gate_norm != GateNorm::none, "cell_norm needs a layer_norm");
  check(o.gate_norm != GateNorm::joint || ((is_lstm || is_gru) && !o.biases),
        "a joint norm needs an LSTM or a GRU without biases");
  check(o.update_bias == 0 || (is_gru && o.gate_norm == GateNorm::joint),
        "update_bias needs a GRU with a joint norm");
  for (const double p : {o.zoneout[0], o.zoneout[1], o.recurrent_dropout})
    check(p >= 0 && p <= 1, "zoneout and recurrent_dropout are probabilities");
  for (const double limit : {o.cell_clip, o.gate_clip, o.grad_clip})
    check(limit >= 0, "a clip is no negative number");
}

std::vector<int> slots_of(const LayerOptions& o) {
  std::vector<int> slots{kWeightIh};
  const auto add = [&](bool present, std::initializer_list<int> more) {
    if (present) slots.insert(slots.end(), more);
  };
  const bool sees_h = !o.own_maths || *o.own_maths < Maths::mingru;
  add(sees_h, {kWeightHh});
  add(o.biases, {kBiasIh});
  add(o.biases && (!o.own_maths || (sees_h && o.own_maths != Maths::indrnn)), {kBiasHh});
  add(o.projected, {kWeightHr});
  add(o.peephole, {kPeephole});
  add(o.gate_norm != GateNorm::none, {kNormIhWeight, kNormIhBias});
  add(o.gate_norm == GateNorm::separate, {kNormHhWeight, kNormHhBias});
  add(o.cell_norm != CellNorm::none, {kNormCWeight, kNormCBias});
  return slots;
}

LayerOptions parse(const std::string& text) {
  LayerOptions options;
  options.text = text;
  std::istringstream words(text);
  std::string word;
  words >> word;
  const auto staged = kStagedCells.find(word);
  options.cell = staged == kStagedCells.end() ? cell_id(word) : CellId::gru;
  options.info = cpu::kernels().info(options.cell);
  if (staged != kStagedCells.end()) {
    options.own_maths = staged->second.maths;
    options.info.name = staged->first.c_str();
    options.info.gates = staged->second.gates;
    options.info.states = staged->second.states;
  }
  for (const char letter : word.substr(0, word.find('_'))) options.kind += char(std::toupper(letter));
  while (words >> word) read_word(options, word);
  if (options.step) options.kind += "Cell";
  if (options.coupled_gates) options.info.gates = 3;
  options.slots = slots_of(options);
  options.varied = options.own_maths || options.drawn || options.slots.back() > kWeightHr ||
                   options.coupled_gates || options.reset_before || options.num_heads > 1 ||
                   options.update_bias != 0 || options.zoneout[0] != 0 || options.zoneout[1] != 0 ||
                   options.recurrent_dropout != 0 || std::isfinite(options.cell_clip) ||
                   std::isfinite(options.gate_clip) || std::isfinite(options.grad_clip);
  if (options.varied) check_variation(options);
  // What h feeds is not rebuilt where one gate's sums follow from those of the others, nor where no product
  // has made it.
  if (options.reset_before || !options.multiplies()) options.recompute = false;
  TORCH_CHECK_VALUE(!options.step || (options.layers == 1 && options.directions == 1 && !options.projected &&
                                      !options.batch_first),
                    "layer: a step has one layer in one direction, without a projection, got '", text, "'");
  TORCH_CHECK_VALUE(!options.cells || (options.info.states > 1 && !options.step),
                    "layer: cells needs a layer with a state beside h, got '", text, "'");
  TORCH_CHECK_VALUE(!options.projected || options.info.states > 1,
                    "layer: a projection needs a cell with a state beside h, got '", text, "'");
  return options;
}

// The text without the words that begin so.
std::string without(const std::string& text, const std::string& beginning) {
  std::istringstream words(text);
  std::string word, rest;
  while (words >> word) {
    if (word.compare(0, beginning.size(), beginning) == 0) continue;
    if (!rest.empty()) rest += ' ';
    rest += word;
  }
  return rest;
}

// Everything that was ever asked for.
class Known {
 public:
  const LayerOptions& find(const std::string& text) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return of(text);
  }

 private:
  const LayerOptions& of(const std::string& text) {
    const auto found = known_.find(text);
    if (found != known_.end()) return *found->second;
    auto made = std::make_unique<LayerOptions>(parse(text));
    made->single = made->layers == 1 ? made.get() : &of(without(text, "layers="));
    made->inner = made->cells ? of(without(text, "cells")).single : made->single;
    return *known_.emplace(text, std::move(made)).first->second;
  }

  std::mutex mutex_;
  std::unordered_map<std::string, std::unique_ptr<LayerOptions>> known_;
};

}  // namespace

Maths LayerOptions::maths() const {
  if (own_maths) return *own_maths;
  switch (cell) {
    case CellId::rnn_tanh:
      return Maths::rnn_tanh;
    case CellId::rnn_relu:
      return Maths::rnn_relu;
    case CellId::lstm:
      return coupled_gates ? Maths::coupled_lstm : Maths::lstm;
    default:
      if (reset_before) return Maths::reset_gru;
      return gate_norm == GateNorm::joint ? Maths::update_gru : Maths::gru;
  }
}

TapeSize LayerOptions::tape_size() const {
  return varied ? variation<double>().tape_size() : cpu::tape_size(cell, projected);
}

CellId cell_id(const std::string& name) {
  const KernelTable& table = cpu::kernels();
  for (int id = 0; id < int(CellId::count); ++id) {
    if (name == table.info(CellId(id)).name) return CellId(id);
  }
  TORCH_CHECK_VALUE(false, "cell: unknown cell '", name, "'");
}

const LayerOptions& layer_options(std::string_view text) {
  // Most calls of a thread are of the layer before.
  thread_local const LayerOptions* last = nullptr;
  if (last && last->text == text) return *last;
  static Known* const known = new Known;  // never destroyed, as what it gives out
  last = &known->find(std::string(text));
  return *last;
}

}  // namespace rnnfused
