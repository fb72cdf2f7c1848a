// Products for drivers that run on the emulator: plain loops in double, every sum over k in order, so that
// the bits of a result do not depend on the sizes of the product.
#pragma once

#include <cuda/ptx.cuh>
#include <vector>

#include "cuda/matmul.h"

namespace rnnfused {
namespace cuda {

// Calls body(T*) with the data as what it is.
template <class Body>
void with_type(Type type, const void* data, Body body) {
  void* p = const_cast<void*>(data);
  switch (type) {
    case Type::f32:
      return body(static_cast<float*>(p));
    case Type::f64:
      return body(static_cast<double*>(p));
    case Type::f16:
      return body(static_cast<Half*>(p));
    case Type::bf16:
      return body(static_cast<BFloat16*>(p));
  }
}

template <class T>
double to_double(T x) {
  if constexpr (sizeof(T) == 2) {
    return double(to_float(x));
  } else {
    return double(x);
  }
}

template <class T>
T from_double(double x) {
  if constexpr (sizeof(T) == 2) {
    return from_float<T>(float(x));
  } else {
    return T(x);
  }
}

class PlainMatmul : public Matmul {
 public:
  std::function<void()> prepare(const Product& product) override {
    return [p = product] {
      for (Index entry = 0; entry < p.batch; ++entry) {
        const std::vector<double> a = read(p.a, entry, p.m, p.k), b = read(p.b, entry, p.k, p.n);
        std::vector<double> sums =
            p.accumulate ? read(p.out, entry, p.m, p.n) : std::vector<double>(size_t(p.m * p.n));
        double* row = sums.data();
        for (Index i = 0; i < p.m; ++i, row += p.n) {
          for (Index k = 0; k < p.k; ++k) {
            const double left = a[size_t(i * p.k + k)];
            const double* right = b.data() + k * p.n;
            for (Index j = 0; j < p.n; ++j) row[j] += left * right[j];
          }
        }
        write(sums, p.out, entry, p.m, p.n);
      }
    };
  }

 private:
  static Index place(const Matrix& m, Index entry, Index row, Index column) {
    return entry * m.batch_stride + row * m.row_stride + column * m.column_stride;
  }

  static std::vector<double> read(const Matrix& m, Index entry, Index rows, Index columns) {
    std::vector<double> found;
    found.reserve(size_t(rows * columns));
    with_type(m.type, m.data, [&](auto* data) {
      for (Index i = 0; i < rows; ++i) {
        for (Index j = 0; j < columns; ++j) found.push_back(to_double(data[place(m, entry, i, j)]));
      }
    });
    return found;
  }

  static void write(const std::vector<double>& from, const Matrix& m, Index entry, Index rows,
                    Index columns) {
    with_type(m.type, m.data, [&](auto* data) {
      using T = std::remove_reference_t<decltype(*data)>;
      for (Index i = 0; i < rows; ++i) {
        for (Index j = 0; j < columns; ++j)
          data[place(m, entry, i, j)] = from_double<T>(from[size_t(i * columns + j)]);
      }
    });
  }
};

}  // namespace cuda
}  // namespace rnnfused
