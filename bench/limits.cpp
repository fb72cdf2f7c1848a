// What a core reads from its caches, and what it costs two threads to meet. bench/limits.py builds this with
// the machine's own compiler and loads it.
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;
// The widest that one instruction takes, and as many chains of them as hide an instruction's latency and
// stay, with two operands, in the registers there are.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kChains = 16;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kChains = 12;
#else
constexpr int kVectorBytes = 16, kChains = 12;
#endif
typedef float Vector __attribute__((vector_size(kVectorBytes)));

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class SpinBarrier {
 public:
  explicit SpinBarrier(int members) : members_(members) {}
  void wait() {
    const int epoch = epoch_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1) == members_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      epoch_.store(epoch + 1, std::memory_order_release);
    } else {
      while (epoch_.load(std::memory_order_acquire) == epoch) {
      }
    }
  }

 private:
  const int members_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> epoch_{0};
};

// The sum keeps the loads from being left out; eight of them hide the additions' latency.
float read_all(const Vector* data, long vectors) {
  Vector sum[8] = {};
  for (long i = 0; i + 8 <= vectors; i += 8) {
    for (int j = 0; j < 8; ++j) sum[j] += data[i + j];
  }
  float total = 0;
  for (int j = 0; j < 8; ++j) total += sum[j][0];
  return total;
}

// Multiplies and adds n times in each of some independent chains.
float multiply_add(long n) {
  Vector sum[kChains], factor = Vector{} + 0.999f, addend = Vector{} + 1e-3f;
  for (int j = 0; j < kChains; ++j) sum[j] = addend * float(j);
  // Neither is known to the compiler, which could work the result out beforehand.
  asm volatile("" : "+m"(factor), "+m"(addend));
  for (long i = 0; i < n; ++i) {
    for (int j = 0; j < kChains; ++j) sum[j] = sum[j] * factor + addend;
  }
  float total = 0;
  for (int j = 0; j < kChains; ++j) total += sum[j][0];
  return total;
}

#if defined(__AVX512BF16__)
// The same with pairs of bfloat16.
float multiply_add_pairs(long n) {
  __m512 sum[kChains];
  for (__m512& s : sum) s = _mm512_set1_ps(1e-3f);
  __m512i pairs = _mm512_set1_epi32(0x3c003c00);
  asm volatile("" : "+m"(pairs));
  for (long i = 0; i < n; ++i) {
    for (__m512& s : sum) s = _mm512_dpbf16_ps(s, (__m512bh)pairs, (__m512bh)pairs);
  }
  float total = 0;
  for (const __m512& s : sum) total += s[0];
  return total;
}
#endif

#if defined(__AVX512VNNI__)
// The same with fours of bytes.
float multiply_add_bytes(long n) {
  __m512i sum[kChains] = {};
  __m512i bytes = _mm512_set1_epi8(1);
  asm volatile("" : "+m"(bytes));
  for (long i = 0; i < n; ++i) {
    for (__m512i& s : sum) s = _mm512_dpbusd_epi32(s, bytes, bytes);
  }
  __m512i total = sum[0];
  for (int j = 1; j < kChains; ++j) total = _mm512_add_epi32(total, sum[j]);
  return float(_mm512_reduce_add_epi32(total));
}
#endif

// Work per second of all threads together, of which work(thread), called over and over, does `amount` and
// returns what comes of it.
template <class Work>
double rate_of(int threads, double amount, long repeats, Work work) {
  SpinBarrier barrier(threads);
  std::vector<double> took(static_cast<size_t>(threads));
  std::vector<std::thread> all;
  for (int t = 0; t < threads; ++t) {
    all.emplace_back([&, t] {
      volatile float sink = work(t);
      barrier.wait();
      const auto start = Clock::now();
      for (long r = 0; r < repeats; ++r) sink = sink + work(t);
      took[size_t(t)] = seconds_since(start);
    });
  }
  for (std::thread& thread : all) thread.join();
  double rate = 0;
  for (double seconds : took) rate += amount * double(repeats) / seconds;
  return rate;
}

}  // namespace

extern "C" {

// Float32 operations per second: multiplications and additions in one, on registers.
double multiply_add_rate(int threads) {
  constexpr long kRounds = 1L << 16;
  const double operations = 2.0 * kChains * double(sizeof(Vector) / sizeof(float)) * double(kRounds);
  return rate_of(threads, operations, 64, [](int) { return multiply_add(kRounds); });
}

// The same of bfloat16, by the instruction that multiplies pairs; 0 where there is none.
double dot_rate(int threads) {
#if defined(__AVX512BF16__)
  constexpr long kRounds = 1L << 16;
  return rate_of(threads, 2.0 * kChains * 32 * double(kRounds), 64,
                 [](int) { return multiply_add_pairs(kRounds); });
#else
  return 0 * threads;
#endif
}

// The same of bytes.
double byte_dot_rate(int threads) {
#if defined(__AVX512VNNI__)
  constexpr long kRounds = 1L << 16;
  return rate_of(threads, 2.0 * kChains * 64 * double(kRounds), 64,
                 [](int) { return multiply_add_bytes(kRounds); });
#else
  return 0 * threads;
#endif
}

// Bytes per second, each thread reading `bytes` of its own.
double read_rate(int threads, long bytes) {
  const long vectors = bytes / long(sizeof(Vector));
  std::vector<std::vector<Vector>> data(size_t(threads),
                                        std::vector<Vector>(size_t(vectors), Vector{} + 1.0f));
  return rate_of(threads, double(bytes), (1L << 28) / bytes + 1,
                 [&](int t) { return read_all(data[size_t(t)].data(), vectors); });
}

// Seconds of one meeting of all threads.
double barrier_seconds(int threads) {
  constexpr int kRounds = 100000;
  SpinBarrier barrier(threads);
  double took = 0;
  std::vector<std::thread> all;
  for (int t = 0; t < threads; ++t) {
    all.emplace_back([&, t] {
      for (int i = 0; i < 1000; ++i) barrier.wait();
      const auto start = Clock::now();
      for (int i = 0; i < kRounds; ++i) barrier.wait();
      if (t == 0) took = seconds_since(start);
    });
  }
  for (std::thread& thread : all) thread.join();
  return took / kRounds;
}
}
