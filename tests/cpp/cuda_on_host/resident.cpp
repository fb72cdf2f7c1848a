// The resident driver and its kernels for the host: kernel sources are compiled as they are.
#include "../../../csrc/cuda/resident.cu"
