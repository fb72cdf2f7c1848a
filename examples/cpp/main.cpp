// Runs a model with recurrent layers without Python, in both ways that there are: as a package that
// AOTInductor compiled, and by calling the operator. CMakeLists.txt says how to build and run it.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace {

using Tensors = std::vector<at::Tensor>;

// The operator's signature, as its schema has it: rnnfused::recurrent(Tensor input, Tensor[] hx,
// Tensor[] params, Tensor? batch_sizes, Tensor? lengths, Tensor? resets, str layer, bool save) -> Tensor[].
using Recurrent = Tensors(const at::Tensor& input, at::TensorList hx, at::TensorList params,
                          const std::optional<at::Tensor>& batch_sizes,
                          const std::optional<at::Tensor>& lengths, const std::optional<at::Tensor>& resets,
                          std::string_view layer, bool save);

// A dictionary of lists of tensors that torch.save wrote.
class Numbers {
 public:
  explicit Numbers(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    TORCH_CHECK(file, "cannot read ", path);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    values_ = torch::jit::pickle_load(bytes);
  }
  Tensors list(const char* name) const {
    Tensors tensors;
    for (const c10::IValue& value : values_.toGenericDict().at(name).toListRef())
      tensors.push_back(value.toTensor());
    return tensors;
  }

 private:
  c10::IValue values_;
};

// Prints how far the results are from Python's; false if that is more than rounding.
bool compare(const char* what, const at::Tensor& got, const at::Tensor& want) {
  const double difference = (got - want).abs().max().item<double>();
  std::printf("%-9s batch %lld, steps %2lld: largest difference %.1e\n", what,
              static_cast<long long>(got.size(0)), static_cast<long long>(got.size(1)), difference);
  return difference < 1e-5;
}

bool run(const std::string& folder) {
  const c10::InferenceMode inference;
  const Numbers numbers(folder + "/numbers.pt");
  const Tensors inputs = numbers.list("inputs"), scores = numbers.list("scores"),
                params = numbers.list("params"), outputs = numbers.list("outputs");

  torch::inductor::AOTIModelPackageLoader model(folder + "/model.pt2");
  const auto recurrent =
      c10::Dispatcher::singleton().findSchemaOrThrow("rnnfused::recurrent", "").typed<Recurrent>();

  bool same = true;
  for (size_t i = 0; i < inputs.size(); ++i) {
    same &= compare("package", model.run({inputs[i]})[0], scores[i]);
    // No states: zeros. The layer's options are words; its results are the output, h_n and c_n.
    const Tensors results = recurrent.call(inputs[i], {}, params, std::nullopt, std::nullopt, std::nullopt,
                                           "lstm layers=2 bidirectional batch_first", false);
    same &= compare("operator", results[0], outputs[i]);
  }
  return same;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::fprintf(stderr, "usage: %s FOLDER (of model.pt2 and numbers.pt)\n", arguments[0]);
    return 2;
  }
  try {
    return run(arguments[1]) ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
