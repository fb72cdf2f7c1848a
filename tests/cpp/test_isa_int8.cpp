// Products of 8-bit numbers, compiled for one ISA: exact, whatever the numbers, and rows rounded to them.
#include <doctest/doctest.h>

#include <cmath>
#include <random>
#include <vector>

#include "cpu/tile.h"

namespace isa = rnnfused::RNNFUSED_ISA;

namespace rnnfused::test {
namespace {

constexpr Index L = isa::kLanes<float>;
using Left = isa::Left<Int8>;
constexpr int kOffset = isa::FactorsOf<Int8>::offset;

std::vector<Int8> numbers(Index n, bool extreme, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<Int8> all;
  for (Index i = 0; i < n; ++i)
    all.push_back({int8_t(extreme ? (random() % 8 ? -128 : 127) : int(random() % 256) - 128)});
  return all;
}

TEST_CASE("Int8 products are exact") {
  for (const bool extreme : {false, true}) {
    for (const Index size : {Index(0), Index(1), Index(3), Index(4), Index(127), Index(128), Index(129),
                             Index(1030), Index(4100)}) {
      for (int width = 1; width <= isa::kMaxWidth; ++width) {
        const Index rows = isa::max_rows(width) + 1, terms = isa::panel_terms<Int8>(size);
        const Index lanes = width * L - (L > 1 ? 1 : 0), stride = isa::padded<float>(size);
        CAPTURE(size);
        CAPTURE(width);
        const std::vector<Int8> weights = numbers(lanes * size, extreme, 1);
        std::vector<Int8> panel(size_t(terms * width * L));
        std::vector<int32_t> starts(size_t(width * L));
        for (int v = 0; v < width; ++v) {
          const Index there = v + 1 < width ? L : lanes - v * L;
          const Int8* const from = weights.data() + v * L * size;
          isa::pack_rows(from, size, there, size, panel.data() + v * L * isa::kTerms<Int8>, width * L);
          isa::store_starts(from, size, there, size, starts.data() + v * L);
        }
        // As round_row makes them: from -127 to 127.
        std::vector<int> left;
        std::vector<Left> stored(size_t(rows * stride), Left(kOffset));
        std::mt19937 random(2);
        for (Index i = 0; i < rows * size; ++i)
          left.push_back(extreme ? (random() % 8 ? 127 : -127) : int(random() % 255) - 127);
        for (Index r = 0; r < rows; ++r) {
          for (Index k = 0; k < size; ++k)
            stored[size_t(r * stride + k)] = Left(left[size_t(r * size + k)] + kOffset);
        }
        std::vector<int32_t> partial(size_t(rows * width * L));
        isa::product<Int8>(
            rows, isa::Runs{1, terms, 0}, width, panel.data(), partial.data(),
            [&](Index r) { return stored.data() + r * stride; },
            [&](Index, int32_t* acc) { std::copy(starts.begin(), starts.end(), acc); },
            [&](Index r, const int32_t* acc) {
              for (Index lane = 0; lane < width * L; ++lane) {
                int64_t want = 0;
                for (Index k = 0; lane < lanes && k < size; ++k)
                  want += left[size_t(r * size + k)] * weights[size_t(lane * size + k)].number;
                if (acc[lane] != want) CAPTURE(lane);
                REQUIRE(acc[lane] == want);
              }
            });
      }
    }
  }
}

TEST_CASE("Int8 sums of as many terms as there may be") {
  const Index size = kMostInt8Terms, stride = isa::padded<float>(size);
  const std::vector<Int8> weights(size_t(L * size), Int8{-128});
  std::vector<Int8> panel(size_t(size * L));
  std::vector<int32_t> starts(static_cast<size_t>(L));
  isa::pack_rows(weights.data(), size, L, size, panel.data(), L);
  isa::store_starts(weights.data(), size, L, size, starts.data());
  for (const int number : {-127, 127}) {
    const std::vector<Left> left(size_t(stride), Left(number + kOffset));
    std::vector<int32_t> partial(static_cast<size_t>(L));
    isa::product<Int8>(
        1, isa::Runs{1, size, 0}, 1, panel.data(), partial.data(), [&](Index) { return left.data(); },
        [&](Index, int32_t* acc) { std::copy(starts.begin(), starts.end(), acc); },
        [&](Index, const int32_t* acc) {
          for (Index lane = 0; lane < L; ++lane) REQUIRE(acc[lane] == -128 * number * size);
        });
  }
}

float round(const std::vector<float>& row, std::vector<Left>& out) {
  out.assign(size_t(isa::padded<float>(Index(row.size()))) + 1, Left(99));
  const float scale = isa::round_row(row.data(), Index(row.size()), out.data());
  REQUIRE(out.back() == Left(99));
  for (size_t i = row.size(); i + 1 < out.size(); ++i) REQUIRE(out[i] == Left(kOffset));
  return scale;
}

TEST_CASE("Int8 rows are the nearest of 127 steps on each side of zero") {
  std::mt19937 random(3);
  std::vector<Left> out;
  for (const float size : {1e-30f, 1e-3f, 1.0f, 3e38f}) {
    for (const int n : {1, 2, 7, 16, 33, 100}) {
      std::vector<float> row;
      for (int i = 0; i < n; ++i) row.push_back(size * (float(random()) / float(random.max()) * 2 - 1));
      float largest = 0;
      for (const float x : row) largest = std::fmax(largest, std::fabs(x));
      CAPTURE(size);
      REQUIRE(round(row, out) == largest / 127);
      for (int i = 0; i < n; ++i) {
        const int number = int(out[size_t(i)]) - kOffset;
        REQUIRE(number >= -127);
        REQUIRE(number <= 127);
        REQUIRE(std::fabs(double(row[size_t(i)]) / largest * 127 - number) < 0.5001);
        if (std::fabs(row[size_t(i)]) == largest) REQUIRE(std::abs(number) == 127);
      }
    }
  }
}

TEST_CASE("Int8 rows of zeros, and rows that are not finite") {
  std::vector<Left> out;
  for (const float tiny : {0.0f, -0.0f, 1e-37f, 1e-42f}) {
    REQUIRE(round({tiny, 0, -tiny}, out) == 0);
    for (const Left x : {out[0], out[1], out[2]}) REQUIRE(x == Left(kOffset));
  }
  for (const float odd : {INFINITY, -INFINITY, NAN}) {
    for (size_t at = 0; at < 20; ++at) {
      std::vector<float> row(20, 1);
      row[at] = odd;
      REQUIRE(std::isnan(round(row, out)));
      for (size_t i = 0; i < 20; ++i) REQUIRE(out[i] == Left(kOffset));
    }
  }
}

}  // namespace
}  // namespace rnnfused::test
