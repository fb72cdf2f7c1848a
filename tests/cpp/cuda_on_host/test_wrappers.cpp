// What the emulator adds to the functions of ptx.cuh, and the checks of wrappers/ under every schedule.
#include <cuda/launch.cuh>
#include <cuda/ptx.cuh>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>

#include "emulation/global.h"
#include "emulation/machine.h"
#include "testing.h"
#include "wrappers/all.cuh"

namespace rnnfused {
namespace emulation {
namespace {

using namespace cuda;

LaunchConfig one_warp(int shared_bytes = 0) {
  LaunchConfig config;
  config.block.x = 32;
  config.shared_bytes = shared_bytes;
  return config;
}

__global__ void add_index(const float* in, float* out, unsigned n) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = in[i] + float(i);
}

__global__ void write_indices(unsigned* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
}

TEST_CASE("a pointwise launch of 100000 threads") {
  constexpr unsigned kCount = 100000;
  GlobalBuffer<float> in(kCount, "in"), out(kCount, "out");
  for (float& value : in) value = 1;
  under_all_schedules(1, [&] {
    LaunchConfig config;
    config.grid.x = (kCount + 255) / 256;
    config.block.x = 256;
    for (float& value : out) value = -1;
    launch(config, nullptr, add_index, in.data(), out.data(), kCount);
    unsigned wrong = 0;
    for (unsigned i = 0; i < kCount; ++i) wrong += out[i] != 1 + float(i);
    CHECK(wrong == 0);
  });
}

TEST_CASE("indices in three dimensions") {
  LaunchConfig config;
  config.grid = {2, 3, 2};
  config.block = {3, 2, 4};
  GlobalBuffer<unsigned> out(12 * 24, "out");
  launch(config, nullptr, write_indices, out.data());
  for (unsigned i = 0; i < out.size(); ++i) CHECK(out[i] == i / 24 * 1000 + i % 24);
}

// Four matrices of 8 rows of 8, `pitch` elements apart.
__global__ void load(uint32_t* out, unsigned pitch) {
  const unsigned i = threadIdx.x;
  const Shared<Half> shared = shared_memory<Half>(0);
  for (unsigned row = i; row < 32; row += 32)
    for (unsigned column = 0; column < 8; ++column)
      shared[row * pitch + column] = Half{uint16_t(row * 256 + column)};
  warp_sync();
  uint32_t fragments[4];
  ldmatrix(fragments, shared + i * pitch);
  for (unsigned k = 0; k < 4; ++k) out[i * 4 + k] = fragments[k];
}

TEST_CASE("bank conflicts of matrix loads") {
  GlobalBuffer<uint32_t> out(128, "out");
  const auto conflicts = [&](unsigned pitch) {
    launch(one_warp(int(32 * pitch * 2)), nullptr, load, out.data(), pitch);
    CHECK(last_launch().ldmatrix_rows == 4);
    return last_launch().ldmatrix_bank_conflicts;
  };
  CHECK(conflicts(8) == 0);
  CHECK(conflicts(64) == 4 * 7);  // 128 bytes: all rows in the same banks
  CHECK(conflicts(72) == 0);      // padded
}

// A message from block to block behind a flag that orders nothing.
__global__ void pass_on(Global<uint32_t> data, Global<uint32_t> flags) {
  const unsigned b = blockIdx.x;
  if (b > 0) poll_until([&] { return load_relaxed(flags + b) != 0; });
  const uint32_t value = b > 0 ? uint32_t(data[b - 1]) : 1;
  data[b] = value + 1;
  if (b + 1 < gridDim.x) store_relaxed(flags + (b + 1), 1u);
}

TEST_CASE("relaxed flags order nothing") {
  constexpr unsigned kBlocks = 6;
  under_all_schedules(3, [] {
    GlobalBuffer<uint32_t> data(kBlocks, "data", Contents::unwritten), flags(kBlocks, "flags");
    for (uint32_t& flag : flags) flag = 0;
    LaunchConfig config;
    config.grid.x = kBlocks;
    config.cooperative = true;
    try {
      launch(config, nullptr, pass_on, data.data(), flags.data());
      FAIL("expected a race");
    } catch (const Fault& fault) {
      CHECK((fault.kind() == FaultKind::race));
    }
  });
}

TEST_CASE("every function gives what it must") {
  for (const WrapperCheck& check : wrapper_checks()) {
    CAPTURE(std::string(check.wrapper));
    CAPTURE(std::string(check.what));
    under_all_schedules(1, [&] {
      std::string difference;
      try {
        difference = check.run();
      } catch (const Fault& fault) {
        difference = fault.what();
      }
      CHECK(difference == "");
    });
  }
}

// The names of the functions of ptx.cuh, but for those of its details; a macro makes load_ and store_ ones.
std::set<std::string> functions_of_ptx() {
  std::ifstream file(RNNFUSED_PTX);
  std::stringstream all;
  all << file.rdbuf();
  const std::string text = all.str();
  const std::string without_details =
      std::regex_replace(text, std::regex("namespace ptx_detail \\{[^]*?\n\\}  // namespace ptx_detail"), "");
  std::set<std::string> names;
  const auto collect = [&](const char* pattern, auto name_of) {
    const std::regex expression(pattern);
    for (std::sregex_iterator i(without_details.begin(), without_details.end(), expression), end; i != end;
         ++i)
      names.insert(name_of(*i));
  };
  collect("__device__ __forceinline__ [^(;{]*?(\\w+)(?:<\\w+>)?\\(",
          [](const std::smatch& m) { return m.str(1); });
  collect("\nRNNFUSED_(LOAD|STORE)\\((\\w+)\\)",
          [](const std::smatch& m) { return (m.str(1) == "LOAD" ? "load_" : "store_") + m.str(2); });
  names.erase("order");  // of the macros' own lines: load_##order
  return names;
}

TEST_CASE("every function of ptx.cuh has a check") {
  std::set<std::string> checked;
  for (const WrapperCheck& check : wrapper_checks()) checked.insert(check.wrapper);
  const std::set<std::string> functions = functions_of_ptx();
  for (const std::string& name : functions) {
    CAPTURE(name);
    CHECK(checked.count(name) == 1);
  }
  for (const std::string& name : checked) {
    CAPTURE(name);
    CHECK(functions.count(name) == 1);
  }
}

}  // namespace
}  // namespace emulation
}  // namespace rnnfused
