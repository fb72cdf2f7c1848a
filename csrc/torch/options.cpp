#include "torch/options.h"

#include <c10/util/Exception.h>

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
                                                            {"int8", &LayerOptions::int8}};

void read_word(LayerOptions& options, const std::string& word) {
  if (const auto flag = kFlags.find(word); flag != kFlags.end()) {
    options.*flag->second = true;
  } else if (word == "bidirectional") {
    options.directions = 2;
  } else if (word == "no_biases") {
    options.biases = false;
  } else {
    static const std::string layers = "layers=";
    const std::string digits = word.compare(0, layers.size(), layers) == 0 ? word.substr(layers.size()) : "";
    const bool number =
        !digits.empty() && digits.size() < 10 && digits.find_first_not_of("0123456789") == std::string::npos;
    TORCH_CHECK_VALUE(number && std::stoll(digits) > 0, "layer: unknown word '", word, "' in '", options.text,
                      "'");
    options.layers = std::stoll(digits);
  }
}

LayerOptions parse(const std::string& text) {
  LayerOptions options;
  options.text = text;
  std::istringstream words(text);
  std::string word;
  words >> word;
  options.cell = cell_id(word);
  options.info = cpu::kernels().info(options.cell);
  for (const char letter : word.substr(0, word.find('_'))) options.kind += char(std::toupper(letter));
  while (words >> word) read_word(options, word);
  if (options.step) options.kind += "Cell";
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
