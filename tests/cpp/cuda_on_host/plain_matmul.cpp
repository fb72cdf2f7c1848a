#include "plain_matmul.h"

#include <type_traits>
#include <vector>

namespace rnnfused {
namespace cuda {
namespace {

Index place(const Matrix& m, Index entry, Index row, Index column) {
  return entry * m.batch_stride + row * m.row_stride + column * m.column_stride;
}

std::vector<double> read(const Matrix& m, Index entry, Index rows, Index columns) {
  std::vector<double> found(size_t(rows * columns));
  with_type(m.type, m.data, [&](auto* data) {
    double* to = found.data();
    for (Index i = 0; i < rows; ++i) {
      for (Index j = 0; j < columns; ++j) *to++ = to_double(data[place(m, entry, i, j)]);
    }
  });
  return found;
}

void write(const std::vector<double>& from, const Matrix& m, Index entry, Index rows, Index columns) {
  with_type(m.type, m.data, [&](auto* data) {
    using T = std::remove_reference_t<decltype(*data)>;
    for (Index i = 0; i < rows; ++i) {
      for (Index j = 0; j < columns; ++j)
        data[place(m, entry, i, j)] = from_double<T>(from[size_t(i * columns + j)]);
    }
  });
}

// Calls body(i, length) for every 0 <= i < n, four at a time where there are so many; length is a constant.
template <class Body>
void for_fours(Index n, Body body) {
  Index i = 0;
  for (; i + 4 <= n; i += 4) body(i, std::integral_constant<int, 4>());
  for (; i < n; ++i) body(i, std::integral_constant<int, 1>());
}

// out [m, n] += a [m, k] b [k, n], a few sums at a time in registers.
void multiply(Index m, Index n, Index terms, const double* a, const double* b, double* out) {
  for_fours(n, [&](Index j, auto columns) {
    for_fours(m, [&](Index i, auto rows) {
      constexpr int R = decltype(rows)::value, C = decltype(columns)::value;
      double sum[R][C];
      for (int r = 0; r < R; ++r) {
        for (int c = 0; c < C; ++c) sum[r][c] = out[(i + r) * n + j + c];
      }
      for (Index k = 0; k < terms; ++k) {
        for (int r = 0; r < R; ++r) {
          for (int c = 0; c < C; ++c) sum[r][c] += a[(i + r) * terms + k] * b[k * n + j + c];
        }
      }
      for (int r = 0; r < R; ++r) {
        for (int c = 0; c < C; ++c) out[(i + r) * n + j + c] = sum[r][c];
      }
    });
  });
}

}  // namespace

std::function<void()> PlainMatmul::prepare(const Product& product) {
  return [p = product] {
    for (Index entry = 0; entry < p.batch; ++entry) {
      const std::vector<double> a = read(p.a, entry, p.m, p.k), b = read(p.b, entry, p.k, p.n);
      std::vector<double> sums =
          p.accumulate ? read(p.out, entry, p.m, p.n) : std::vector<double>(size_t(p.m * p.n));
      multiply(p.m, p.n, p.k, a.data(), b.data(), sums.data());
      write(sums, p.out, entry, p.m, p.n);
    }
  };
}

}  // namespace cuda
}  // namespace rnnfused
