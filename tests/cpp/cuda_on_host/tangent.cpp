// The kernels of tangents for the host: kernel sources are compiled as they are.
#include "../../../csrc/cuda/tangent.cu"
