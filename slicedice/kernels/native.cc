// Grouped matmul for CPUs: cost in proportion to rows, no padding, no copies of matrices.
//
// One register-tiled product serves all three directions. Rows of a group are a matrix of their own, so a
// group's output is  C[i][j] = sum_p A(i, p) * B[p][j]  where A is read with two strides:
//   gmm            A = rows of lhs, B = the group's matrix (transposed into scratch for the gradient of lhs)
//   tgmm           A = rows of lhs read as columns, B = rows of the gradient, p runs over the group's rows
// Sums run over p in order for every element, so results do not depend on how tiles fall.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace {

#ifdef __AVX512F__
constexpr int kLanes = 16, kVectors = 4, kRows = 6;  // 24 of 32 registers hold sums
#else
constexpr int kLanes = 8, kVectors = 2, kRows = 6;  // 12 of 16
#endif
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

struct Strided {
  const float* data;
  int64_t row, column;  // elements between rows, and between columns
  float at(int64_t i, int64_t p) const { return data[i * row + p * column]; }
};

template <int rows, int vectors>
void Tile(int64_t depth, Strided a, const float* b, int64_t ldb, float* c, int64_t ldc) {
  Vector sum[rows][vectors] = {};
  for (int64_t p = 0; p < depth; ++p) {
    const Vector* right = reinterpret_cast<const Vector*>(b + p * ldb);
    for (int i = 0; i < rows; ++i) {
      const float left = a.at(i, p);
      for (int v = 0; v < vectors; ++v) sum[i][v] += left * right[v];
    }
  }
  for (int i = 0; i < rows; ++i)
    for (int v = 0; v < vectors; ++v) reinterpret_cast<Vector*>(c + i * ldc)[v] = sum[i][v];
}

template <int vectors>
void Columns(int64_t m, int64_t depth, Strided a, const float* b, int64_t ldb, float* c, int64_t ldc) {
  int64_t i = 0;
  for (; i + kRows <= m; i += kRows)
    Tile<kRows, vectors>(depth, {a.data + i * a.row, a.row, a.column}, b, ldb, c + i * ldc, ldc);
  for (; i < m; ++i) Tile<1, vectors>(depth, {a.data + i * a.row, a.row, a.column}, b, ldb, c + i * ldc, ldc);
}

// C[m][n] = A * B, whatever C held before.
void Multiply(int64_t m, int64_t n, int64_t depth, Strided a, const float* b, int64_t ldb, float* c, int64_t ldc) {
  int64_t j = 0;
  for (; j + kVectors * kLanes <= n; j += kVectors * kLanes) Columns<kVectors>(m, depth, a, b + j, ldb, c + j, ldc);
  for (; j + kLanes <= n; j += kLanes) Columns<1>(m, depth, a, b + j, ldb, c + j, ldc);
  if (j == n) return;
  for (int64_t i = 0; i < m; ++i) {
    float sum[kLanes] = {};
    for (int64_t p = 0; p < depth; ++p)
      for (int64_t v = 0; v < n - j; ++v) sum[v] += a.at(i, p) * b[p * ldb + j + v];
    std::copy(sum, sum + (n - j), c + i * ldc + j);
  }
}

ffi::Error Gmm(ffi::Buffer<ffi::F32> lhs, ffi::Buffer<ffi::F32> rhs, ffi::Buffer<ffi::S32> sizes, bool transpose_rhs,
               ffi::ResultBuffer<ffi::F32> out) {
  const int64_t rows = lhs.dimensions()[0], depth = lhs.dimensions()[1], n = out->dimensions()[1];
  const int64_t groups = rhs.dimensions()[0], matrix = depth * n;
  std::vector<float> scratch(transpose_rhs ? matrix : 0);
  int64_t row = 0;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t m = std::min<int64_t>(sizes.typed_data()[g], rows - row);
    if (m <= 0) continue;
    const float* b = rhs.typed_data() + g * matrix;
    if (transpose_rhs) {
      for (int64_t j = 0; j < n; ++j)
        for (int64_t p = 0; p < depth; ++p) scratch[p * n + j] = b[j * depth + p];
      b = scratch.data();
    }
    Multiply(m, n, depth, {lhs.typed_data() + row * depth, depth, 1}, b, n, out->typed_data() + row * n, n);
    row += m;
  }
  std::fill(out->typed_data() + row * n, out->typed_data() + rows * n, 0.0f);
  return ffi::Error::Success();
}

ffi::Error Tgmm(ffi::Buffer<ffi::F32> lhs, ffi::Buffer<ffi::F32> grad, ffi::Buffer<ffi::S32> sizes,
                ffi::ResultBuffer<ffi::F32> out) {
  const int64_t rows = lhs.dimensions()[0], k = lhs.dimensions()[1], n = grad.dimensions()[1];
  int64_t row = 0;
  for (int64_t g = 0; g < out->dimensions()[0]; ++g) {
    // An empty group sums nothing, which is exactly zero.
    const int64_t depth = std::max<int64_t>(0, std::min<int64_t>(sizes.typed_data()[g], rows - row));
    Multiply(k, n, depth, {lhs.typed_data() + row * k, 1, k}, grad.typed_data() + row * n, n,
             out->typed_data() + g * k * n, n);
    row += depth;
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(SlicediceGmm, Gmm,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Attr<bool>("transpose_rhs")
                                  .Ret<ffi::Buffer<ffi::F32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(SlicediceTgmm, Tgmm,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
