// Every function of cuda/ptx.cuh in a kernel, for each architecture: a compile check, and the same file
// serves the host's emulation, which must have the same names.
//
// In angle brackets: in quotes it would find the emulation, which lies beside this file, under nvcc as well.
#include <cuda/launch.cuh>
#include <cuda/ptx.cuh>

namespace rnnfused {
namespace cuda {

template <class T>
__global__ void __launch_bounds__(32) use_conversions(const float* in, T* out, uint32_t* pairs) {
  const unsigned i = threadIdx.x;
  const T value = from_float<T>(in[i]);
  out[i] = value;
  const uint32_t pair = pack_floats<T>(in[i], to_float(value));
  pairs[i] = pair ^ pack(unpack_high<T>(pair), unpack_low<T>(pair));
}

__global__ void __launch_bounds__(32) use_approximations(const float* in, float* out) {
  const unsigned i = threadIdx.x;
  out[i] =
      exp2_approx(in[i]) + tanh_approx(in[i]) + reciprocal_approx(in[i]) + from_float<float>(to_float(in[i]));
}

__global__ void __launch_bounds__(32) use_warp(const float* in, float* out, uint32_t* votes) {
  const unsigned i = threadIdx.x;
  float value = in[i];
  value += shuffle(value, 0);
  value += shuffle_xor(value, 1);
  value += shuffle_down(value, 2);
  const Shared<float> shared = shared_memory<float>(0);
  shared[i] = value;
  warp_sync();
  const float other = shared[31 - i];
  block_sync();
  out[i] = other;
  votes[i] = ballot(other > 0);
}

__global__ void __launch_bounds__(32)
    use_global(Global<uint32_t> words, Global<uint64_t> wide, Global<const float> floats, uint32_t* out) {
  const unsigned i = threadIdx.x;
  RNNFUSED_UNROLL
  for (int k = 0; k < 2; ++k) atomic_add_relaxed(words, 1);
  atomic_add(words, 1);
  fence_gpu();
  if (i == 0) {
    store_release(words + 1, 5u);
    store_relaxed(words + 2, 6u);
    store_release(wide, uint64_t(7));
    store_relaxed(wide + 1, uint64_t(8));
  }
  poll_until([&] { return load_acquire(words + 1) == 5; });
  poll_until([&] { return load_relaxed(words) == 96; });
  nanosleep(20);
  const uint64_t sum = load_acquire(wide) + load_relaxed(wide + 1);
  if (sum > 1000 || load_relaxed(floats) != load_acquire(floats)) trap();
  out[i] = uint32_t(sum) + load_relaxed(words + 2);
}

__global__ void __launch_bounds__(32) use_grid(Global<float> in, float* out) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  in[i] = float(i);
  grid_sync();
  const float value = in[gridDim.x * blockDim.x - 1 - i];
  out[i] = value;
}

__global__ void __launch_bounds__(32) use_copies(const float* in, float* out) {
  const unsigned i = threadIdx.x;
  const Shared<float> shared = shared_memory<float>(0);
  cp_async<16>(shared + 4 * i, in + 4 * i);
  cp_async_commit();
  cp_async<8>(shared + 128 + 2 * i, in + 2 * i);
  cp_async_commit();
  cp_async<4>(shared + 192 + i, in + i);
  cp_async_zfill<16>(shared + 224 + 4 * i, in + 4 * i, 8);
  cp_async_zfill<4>(shared + 352 + i, in + i, 0);
  cp_async_wait<1>();
  cp_async_wait_all();
  block_sync();
  float sum = 0;
  for (unsigned k = 0; k < 12; ++k) {
    const float value = shared[(k * 32 + 31 - i)];
    sum += value;
  }
  out[i] = sum;
}

__global__ void __launch_bounds__(32) use_mbarriers(float* out) {
  const unsigned i = threadIdx.x;
  const Shared<float> shared = shared_memory<float>(0);
  const Shared<Mbarrier> barrier = shared_memory<Mbarrier>(128);
  if (i == 0) mbarrier_init(barrier, 32);
  block_sync();
  shared[i] = float(i);
  mbarrier_arrive(barrier);
  mbarrier_wait(barrier, 0);
  const float value = shared[31 - i];
  mbarrier_arrive(barrier);
  poll_until([&] { return mbarrier_test(barrier, 1); });
  out[i] = value;
}

__global__ void __launch_bounds__(32) use_cluster(float* out) {
  const unsigned i = threadIdx.x, rank = cluster_rank(), size = cluster_size(), peer = (rank + 1) % size;
  const Shared<uint32_t> words = shared_memory<uint32_t>(0);
  const Shared<uint2> pairs = shared_memory<uint2>(128);
  const Shared<float4> quads = shared_memory<float4>(384);
  const Shared<Mbarrier> received = shared_memory<Mbarrier>(896), arrived = received + 1;
  if (i == 0) {
    mbarrier_init(received, 1);
    mbarrier_init(arrived, 32);
    fence_mbarrier_init();
    mbarrier_expect_tx(received, 32 * 4);
    mbarrier_arrive_expect_tx(received, 32 * (8 + 16));
  }
  cluster_sync();
  const Remote<Mbarrier> completes = cluster_map(received, peer);
  st_async(cluster_map(words + i, peer), rank, completes);
  st_async(cluster_map(pairs + i, peer), make_uint2(rank, i), completes);
  st_async(cluster_map(quads + i, peer), make_float4(float(rank), float(i), 1, 2), completes);
  mbarrier_arrive_cluster(cluster_map(arrived, peer));
  mbarrier_wait(received, 0);
  mbarrier_wait(arrived, 0);
  const uint32_t word = words[31 - i];
  const uint2 pair = pairs[31 - i];
  const float4 quad = shared_cast<float4>(quads)[31 - i];
  cluster_sync();
  out[blockIdx.x * 32 + i] = float(word) + float(pair.x + pair.y) + quad.x + quad.y + quad.z + quad.w;
}

// C = A B with A 16x16 and B stored as its 8 columns, both of 256 and 128 elements.
template <class T, bool Trans>
__global__ void __launch_bounds__(32) use_matrices(const T* a_in, const T* b_in, float* out) {
  const unsigned i = threadIdx.x;
  const Shared<T> a = shared_memory<T>(0), b = shared_memory<T>(512);
  for (unsigned k = i; k < 256; k += 32) a[k] = a_in[k];
  for (unsigned k = i; k < 128; k += 32) b[k] = b_in[k];
  block_sync();
  uint32_t af[4], bf[2], low[1], high[1];
  if constexpr (Trans) {
    ldmatrix_trans(af, a + ((i % 8 + i / 16 * 8) * 16 + i / 8 % 2 * 8));
    ldmatrix_trans(bf, b + i % 16 * 8);
    ldmatrix_trans(low, b + i % 8 * 8);
    ldmatrix_trans(high, b + (8 + i % 8) * 8);
  } else {
    ldmatrix(af, a + (i % 16 * 16 + i / 16 * 8));
    ldmatrix(bf, b + (i % 8 * 16 + i / 8 % 2 * 8));
    ldmatrix(low, b + i % 8 * 16);
    ldmatrix(high, b + (i % 8 * 16 + 8));
  }
  float d[4] = {};
  mma_sync<T>(d, af, bf);
  if (low[0] != bf[0] || high[0] != bf[1]) trap();
  for (unsigned k = 0; k < 4; ++k) out[(i / 4 + k / 2 * 8) * 8 + i % 4 * 2 + k % 2] = d[k];
}

__global__ void __launch_bounds__(32) use_tf32(const float* a, const float* b, float* out) {
  const unsigned i = threadIdx.x, g = i / 4, t = i % 4;
  const uint32_t af[4] = {to_tf32(a[g * 8 + t]), to_tf32(a[(g + 8) * 8 + t]), to_tf32(a[g * 8 + t + 4]),
                          to_tf32(a[(g + 8) * 8 + t + 4])};
  const uint32_t bf[2] = {to_tf32(b[t * 8 + g]), to_tf32(b[(t + 4) * 8 + g])};
  float d[4] = {};
  mma_sync_tf32(d, af, bf);
  for (unsigned k = 0; k < 4; ++k) out[(g + k / 2 * 8) * 8 + t * 2 + k % 2] = d[k];
}

__global__ void __launch_bounds__(32) use_casts(Global<uint32_t> words, float* out) {
  const Global<float> floats = global_cast<float>(words);
  const float value = floats[threadIdx.x];
  out[threadIdx.x] = value;
}

// Launches all of them once, with buffers of at least 1024 elements, the words zero.
void use_everything(const float* in, float* out, uint32_t* words, uint64_t* wide, Half* halves,
                    BFloat16* bfloats, Stream stream) {
  LaunchConfig one;
  one.block.x = 32;
  one.shared_bytes = 2048;
  launch(one, stream, use_global, words, wide, in, words + 512);
  launch(one, stream, use_conversions<Half>, in, halves, words);
  launch(one, stream, use_conversions<BFloat16>, in, bfloats, words);
  launch(one, stream, use_approximations, in, out);
  launch(one, stream, use_warp, in, out, words);
  launch(one, stream, use_casts, words, out);
  launch(one, stream, use_copies, in, out);
  launch(one, stream, use_mbarriers, out);
  launch(one, stream, use_matrices<Half, false>, halves, halves, out);
  launch(one, stream, use_matrices<Half, true>, halves, halves, out);
  launch(one, stream, use_matrices<BFloat16, false>, bfloats, bfloats, out);
  launch(one, stream, use_matrices<BFloat16, true>, bfloats, bfloats, out);
  launch(one, stream, use_tf32, in, in, out);
  LaunchConfig four = one;
  four.grid.x = 4;
  four.cooperative = true;
  launch(four, stream, use_grid, out, out + 512);
  four.cooperative = false;
  four.cluster = 4;
  launch(four, stream, use_cluster, out);
}

}  // namespace cuda
}  // namespace rnnfused
