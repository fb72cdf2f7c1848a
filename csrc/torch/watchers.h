// Whether anything but autograd wants to see a call. The eager fast path goes past torch's dispatcher only
// where nobody does; all else goes through the operator, so that a mode or transform of which nobody thought
// is right, only slower.
#pragma once

#include "torch/arguments.h"

namespace rnnfused {

// True for a thread that traces, transforms, runs a mode, casts automatically or is inside a kernel, and for
// tensors that are more than dense memory on a CPU or CUDA device: subclasses, wrappers, lazy views.
RNNFUSED_API bool somebody_watches(const Arguments& arguments);
bool somebody_watches(const at::Tensor& t);

// The same of tensors alone, which may be undefined.
bool is_plain(const at::Tensor& t);

// The same of the thread alone, but for modes of Python functions (torch.device as a context is one): what is
// no function of torch's they do not see.
bool thread_is_watched();

}  // namespace rnnfused
