// What a core reads from its caches, and what it costs two threads to meet. bench/limits.py builds this with
// the machine's own compiler and loads it.
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
typedef float Vector __attribute__((vector_size(64)));

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

}  // namespace

extern "C" {

// Bytes per second of all threads together, each reading `bytes` of its own over and over.
double read_rate(int threads, long bytes) {
  const long vectors = bytes / long(sizeof(Vector)), repeats = (1L << 28) / bytes + 1;
  SpinBarrier barrier(threads);
  std::vector<double> took(static_cast<size_t>(threads));
  std::vector<std::thread> all;
  for (int t = 0; t < threads; ++t) {
    all.emplace_back([&, t] {
      Vector* data = static_cast<Vector*>(std::aligned_alloc(64, size_t(vectors) * sizeof(Vector)));
      for (long i = 0; i < vectors; ++i) data[i] = Vector{} + float(t);
      volatile float sink = read_all(data, vectors);
      barrier.wait();
      const auto start = Clock::now();
      for (long r = 0; r < repeats; ++r) sink = sink + read_all(data, vectors);
      took[size_t(t)] = seconds_since(start);
      std::free(data);
    });
  }
  for (std::thread& thread : all) thread.join();
  double rate = 0;
  for (double seconds : took) rate += double(vectors * long(sizeof(Vector)) * repeats) / seconds;
  return rate;
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
