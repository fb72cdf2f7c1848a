// The pool of large memory: what it keeps, what it gives back, and that where memory is scarce nothing is
// lost.
#include <doctest/doctest.h>

#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "cpu/pool.h"

namespace {
bool none_left = false;
}  // namespace

// What the pool keeps its books in; its regions it asks for by the aligned form.
void* operator new(size_t bytes) {
  void* const memory = none_left ? nullptr : std::malloc(bytes);
  if (!memory) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace rnnfused {
namespace {

constexpr size_t kMiB = size_t(1) << 20;

void* filled(size_t bytes, int with) {
  void* const memory = pool::take(bytes);
  REQUIRE(memory);
  return std::memset(memory, with, bytes);
}

bool is_filled(const void* memory, size_t bytes, char with) {
  const char* const at = static_cast<const char*>(memory);
  for (size_t i = 0; i < bytes; i += 1000) {
    if (at[i] != with) return false;
  }
  return at[bytes - 1] == with;
}

TEST_CASE("memory that is given back is asked for no more memory") {
  pool::clear();
  std::vector<void*> pieces;
  for (int i = 0; i < 4; ++i) pieces.push_back(filled(3 * kMiB, i));
  none_left = true;
  for (void* piece : pieces) pool::give(piece);
  const size_t kept = pool::kept_bytes();
  pool::clear();
  none_left = false;
  CHECK(kept >= 12 * kMiB);
  CHECK(pool::kept_bytes() == 0);
}

TEST_CASE("without memory for the books there is none, and all that was kept still is") {
  pool::clear();
  none_left = true;
  void* const refused = pool::take(2 * kMiB);
  none_left = false;
  CHECK(refused == nullptr);

  void* const large = filled(64 * kMiB, 1);
  pool::give(large);
  const size_t kept = pool::kept_bytes();
  none_left = true;
  void* const part = pool::take(2 * kMiB);  // would be cut from the other
  none_left = false;
  CHECK(part == nullptr);
  CHECK(pool::kept_bytes() == kept);
  CHECK(pool::take(64 * kMiB) == large);
  pool::give(large);
  pool::clear();
}

TEST_CASE("no more is kept than the limit, whatever small piece is in use") {
  pool::clear();
  std::vector<void*> small;
  for (int i = 0; i < 4; ++i) {
    pool::give(filled(200 * kMiB, 7));
    small.push_back(filled(2 * kMiB, i));
    void* const rest = filled(197 * kMiB, 8);
    pool::give(rest);
    CHECK(pool::kept_bytes() <= pool::kKeptBytes);
    // The piece in use is taken from a region that is kept for it; the next one needs a region of its own.
    small.push_back(filled(197 * kMiB, i));
  }
  for (int i = 0; i < 4; ++i) {
    CHECK(is_filled(small[size_t(2 * i)], 2 * kMiB, char(i)));
    CHECK(is_filled(small[size_t(2 * i) + 1], 197 * kMiB, char(i)));
  }
  for (size_t i = 1; i < small.size(); i += 2) pool::give(small[i]);
  CHECK(pool::kept_bytes() <= pool::kKeptBytes);
  pool::clear();
  CHECK(pool::kept_bytes() == 0);
  for (int i = 0; i < 4; ++i) CHECK(is_filled(small[size_t(2 * i)], 2 * kMiB, char(i)));
  // Pages that were given back are memory again, and the regions are whole again at the end.
  void* const again = filled(190 * kMiB, 9);
  CHECK(is_filled(again, 190 * kMiB, 9));
  pool::give(again);
  for (size_t i = 0; i < small.size(); i += 2) pool::give(small[i]);
  pool::clear();
  CHECK(pool::kept_bytes() == 0);
}

}  // namespace
}  // namespace rnnfused
