// What the CUDA back end is handed: pointers to device memory, a stream, and what multiplies matrices.
// Host-only; nothing here knows of torch or needs a CUDA header.
#pragma once

#include "core/sequence.h"

namespace rnnfused::cuda {

// Types of inputs, outputs and weights. Accumulators and states that are carried are f64 for f64, else f32.
enum class Type : int { f32, f64, f16, bf16 };

constexpr Index bytes_of(Type type) { return type == Type::f64 ? 8 : type == Type::f32 ? 4 : 2; }
constexpr Type compute_type(Type type) { return type == Type::f64 ? Type::f64 : Type::f32; }

template <class T>
struct TypeOf;
template <>
struct TypeOf<float> {
  static constexpr Type value = Type::f32;
};
template <>
struct TypeOf<double> {
  static constexpr Type value = Type::f64;
};
template <>
struct TypeOf<Half> {
  static constexpr Type value = Type::f16;
};
template <>
struct TypeOf<BFloat16> {
  static constexpr Type value = Type::bf16;
};

using StreamHandle = void*;  // a cudaStream_t

// `directions` layers over the same input. Void pointers are of type `type`, those marked "compute" of
// compute_type(type). Matrices are contiguous. Memory of the tape and of the scratch starts at multiples of
// 64 bytes.
struct Layer {
  Type type;
  int directions;
  SequenceShape shape;  // offsets are on the host; `reverse` is not read: direction 1 runs backwards

  const void* x;   // [rows, x_stride], of which I columns are features
  Index x_stride;  // I, and one more where each row has a weight
  // [D, G * H, I]: blocks of H rows in the order of the cell's accumulators, not of torch's gates
  const void* input_weights;
  const void* recurrent_weights;           // [D, G * H, P]
  const void* input_bias[kMaxDirections];  // [G * H] or null
  const void* bias[kMaxDirections];        // [G * H] or null
  const void* projection;                  // [D, P, H] or null
  // Of padded input, on the device. What backward reads beyond the lengths must be finite.
  const Index* lengths;  // [B] or null: all steps
  const bool* resets;    // [T, B] or null: none
  const bool* active;    // of one step alone: which rows take it [B], on the device; or null: all
  bool recompute;        // whether backward rebuilds the gates
  // Of a layer with options: a Variation of the compute type for each direction, on the host, whose
  // parameters are on the device. shape.hidden is then G H, and c stands for all vectors beside h [D, B,
  // states - 1, H].
  const void* variation[kMaxDirections];
  // Whether a driver may keep the weights on the chip where they fit, and multiply float32 as TF32 there.
  bool allows_resident, allows_tf32;
  Index chunk_bytes;  // of gates not taped that are held at once, where one step does not take more
  void* scratch;      // as many bytes as the driver asks for
};

struct ForwardLayer : Layer {
  void* h;       // [D, B, P]: h_0 before, h_n after
  void* h_wide;  // compute [D, B, P]: the same unrounded, of states that go on from call to call; or null
  void* c;       // compute [D, B, H]: c_0 before, c_n after; null for cells without c
  void* y;       // [rows, D * P]
  void* cells;   // c of every row [rows, D * H], or null
  void* tape;    // as many bytes as the driver asks for; null for inference
};

struct BackwardLayer : Layer {
  const void* h0;                          // [D, B, P]
  const void* c0;                          // compute [D, B, H]
  const void* y;                           // [rows, D * P]
  void* tape;                              // is only read
  const void* dy;                          // [rows, D * P] or null
  const void* dcells;                      // gradient of c of every row [rows, D * H], or null
  void* dh;                                // compute [D, B, P]: gradient of h_n before, of h_0 after
  void* dc;                                // compute [D, B, H]: likewise of c
  void* dx;                                // [rows, x_stride]; this and all below: null where not wanted
  void* dinput[kMaxDirections];            // dW_ih [G * H, I], in torch's order of gates
  void* drecurrent[kMaxDirections];        // dW_hh [G * H, P]
  void* dinput_bias[kMaxDirections];       // db_ih [G * H]
  void* dbias[kMaxDirections];             // db_hh [G * H]
  void* dprojection[kMaxDirections];       // dW_hr [P, H]
  const void* dvariation[kMaxDirections];  // VariationParameters of the compute type, on the host
};

}  // namespace rnnfused::cuda
