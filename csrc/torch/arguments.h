// What a call of the operator is given, checked once, in torch's words: the same for eager calls, for traced
// graphs, where sizes may be symbols, and for tensors without memory.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <array>
#include <functional>
#include <optional>

#include "torch/options.h"

namespace rnnfused {

struct Sequences;

using OptionalTensor = std::optional<at::Tensor>;

// Where the sequences are in the input; without any of these each has all steps of a padded input.
//
// batch_sizes: of packed rows [T], int64, on the CPU. lengths [B], of any integer type, on any device: how
// many steps of a padded input each sequence has; of rows [rows, I] how many of them, one sequence after the
// other. resets, bool, shaped as the input without its features: before which of the steps of a sequence its
// state is zero; the reverse direction's is after that step.
struct Layout {
  OptionalTensor batch_sizes = std::nullopt, lengths = std::nullopt, resets = std::nullopt;

  std::array<std::reference_wrapper<const OptionalTensor>, 3> all() const {
    return {batch_sizes, lengths, resets};
  }
  // Whether none of them says anything.
  bool padded() const { return !batch_sizes && !lengths && !resets; }
};

// input: [T, B, I], [B, T, I] if batch_first, [T, I] without a batch, or rows [rows, I] with batch_sizes or
// lengths; of a step [B, I] or [I]. hx: none (zeros), or h [L D, B, P] and, where the cell has one, c
// [L D, B, H]; without a batch [L D, .], of a step [B, H] or [H]. params: for each layer and direction W_ih
// [G H, I], W_hh [G H, P], then b_ih, b_hh [G H] if there are biases, then W_hr [P, H] if there is a
// projection; of matrices of 8 bits then the scales of their rows: [G H], [G H] and [P], in the same order;
// with options what these bring, in the order of slots (torch/options.h). Where masks are drawn one tensor
// more: the seed of each layer, int64 [L].
struct Arguments {
  const LayerOptions& options;
  const at::Tensor& input;
  at::TensorList hx, params;
  Layout layout;
  const Sequences* numbered = nullptr;  // of packed rows that were placed so: what their masks are drawn by
};

// How the rows of the input are laid out.
enum class RowOrder {
  padded,        // every sequence has a place at each step
  packed,        // torch's PackedSequence
  concatenated,  // one sequence after the other
};

// The arguments' sizes. `steps` and `batch` of packed rows are in batch_sizes, which only kernels read: there
// batch is that of hx, or 0 if there is none, and `rows` is what can be known. Of concatenated rows `steps`
// is the most that one sequence may have.
struct Form {
  RowOrder order;
  bool batched;  // whether there is a batch dimension (rows have a batch)
  bool masked;   // whether there are lengths or resets: results then lie as the caller counts them
  c10::SymInt steps, batch, rows;
  Index input, hidden, output;

  bool padded() const { return order == RowOrder::padded; }
};

// Throws what torch.nn's layers and cells throw for the same mistakes, with their words, and else ValueError
// or RuntimeError that names the argument, what was expected and what came.
Form check(const Arguments& arguments);

// Throws what torch throws for a state of another size.
[[noreturn]] void refuse_state(const LayerOptions& options, size_t state, c10::SymIntArrayRef expected,
                               c10::SymIntArrayRef got);

// Throws RuntimeError for a layer whose weights have no gradients.
void check_gradients(const LayerOptions& options);

// Throws for a layer with options that no kernel runs on such input: it has those in torch's operations.
void check_kernels(const LayerOptions& options, const at::Tensor& input);

// Throws RuntimeError unless there are kernels for the tensor's device and dtype.
void check_input(const at::Tensor& x);

// Throws RuntimeError, naming the argument, unless the tensor is on the device, of the dtype and of the
// sizes.
void check_tensor(const at::Tensor& t, const char* name, const c10::Device& device, at::ScalarType type,
                  c10::SymIntArrayRef sizes);

// Throws RuntimeError unless a kernel may read all of the tensor: sizes alone are no memory.
void check_memory(const at::Tensor& t, const char* name);

// Sizes of what the operator returns, in its order: the output, the final states and c of every step.
std::vector<c10::SymDimVector> output_sizes(const Arguments& arguments, const Form& form);

// Of the tape that it returns with `save`, in scalars of tape_type; and what a unit has of it.
c10::SymDimVector tape_sizes(const LayerOptions& options, const Form& form, const at::Tensor& input);
TapeSize tape_size(const LayerOptions& options, const at::Tensor& input);

// The type in which a layer on such input computes.
at::ScalarType compute_type(at::ScalarType type);

// The type of the tape: on a GPU the one that is computed in.
at::ScalarType tape_type(const at::Tensor& input);

// The type of the output and the final states: that of hx, or of the input where there is none.
at::ScalarType state_type(const Arguments& arguments);

}  // namespace rnnfused
