#include "torch/watchers.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include <algorithm>

namespace rnnfused {
namespace {

using c10::DispatchKey;

// A set's bits, backends' among them: the difference of two sets would keep those.
uint64_t bits(c10::DispatchKeySet set) { return set.raw_repr(); }

const uint64_t kPlain = bits(c10::DispatchKeySet(
    {DispatchKey::CPU, DispatchKey::CUDA, DispatchKey::AutogradCPU, DispatchKey::AutogradCUDA,
     DispatchKey::ADInplaceOrView, DispatchKey::AutocastCPU, DispatchKey::AutocastCUDA}));

}  // namespace

bool is_plain(const at::Tensor& t) {
  return !t.defined() || ((bits(t.key_set()) & ~kPlain) == 0 && !t._fw_grad(/*level=*/0).defined());
}

bool thread_is_watched() {
  const c10::impl::LocalDispatchKeySet local = c10::impl::tls_local_dispatch_key_set();
  return (bits(local.included_) & ~bits(c10::default_included_set)) != 0 ||
         c10::impl::TorchDispatchModeTLS::stack_len() != 0 || torch::jit::tracer::isTracing();
}

namespace {

// Where the mode that asks for gradients is on although autograd is left out (inference mode, the body of a
// custom operator): who looks at the mode alone would record a graph.
bool thread_is_below_autograd() {
  return at::GradMode::is_enabled() &&
         c10::impl::tls_local_dispatch_key_set().excluded_.has(DispatchKey::AutogradFunctionality);
}

}  // namespace

bool somebody_watches(const at::Tensor& t) {
  return !is_plain(t) || thread_is_below_autograd() || thread_is_watched() ||
         at::impl::torch_function_mode_enabled() || at::autocast::is_autocast_enabled(t.device().type());
}

bool somebody_watches(const Arguments& a) {
  const auto is_odd = [](const at::Tensor& t) { return !is_plain(t); };
  const auto layout = a.layout.all();
  return somebody_watches(a.input) || std::any_of(a.hx.begin(), a.hx.end(), is_odd) ||
         std::any_of(a.params.begin(), a.params.end(), is_odd) ||
         std::any_of(layout.begin(), layout.end(), [&](const OptionalTensor& t) { return t && is_odd(*t); });
}

}  // namespace rnnfused
