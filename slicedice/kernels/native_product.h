// One product on a core, C = A * B or C += A * B, in float32, that serves every direction of a grouped matmul.
//
// Both factors are read with two strides, so that a transposed one needs no copy of its own. B is taken in strips a
// few vectors wide and kDepth deep, which are packed (and transposed on the way) where enough rows meet them. Sums
// run over the depth in order for every element, so results do not depend on how tiles fall or threads share them.

#ifndef SLICEDICE_NATIVE_PRODUCT_H_
#define SLICEDICE_NATIVE_PRODUCT_H_

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <utility>

namespace slicedice {

#ifdef __AVX512F__
constexpr int kLanes = 16, kVectors = 4, kRows = 6;  // 24 of 32 registers hold sums
#else
constexpr int kLanes = 8, kVectors = 2, kRows = 6;  // 12 of 16
#endif
constexpr int kWidth = kVectors * kLanes;
constexpr int64_t kDepth = 256;
constexpr int64_t kPackRows = 12;  // rows of A from which packing a strip of B pays

typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));
typedef int32_t Lanes __attribute__((vector_size(kLanes * sizeof(int32_t))));
template <int lane>
using At = std::integral_constant<int, lane>;

// Element (i, j) is data[i * row + j * column].
struct Matrix {
  const float* data;
  int64_t row, column;
  const float* at(int64_t i, int64_t j) const { return data + i * row + j * column; }
};

// What becomes of C: written anew, summed into, or written anew when it is unlikely to be in a cache.
enum class Into { kNew, kSum, kMemory };
constexpr int kAhead = 2;  // tiles ahead of which lines of such a C are asked for; a core waits for few at a time

template <int rows, int vectors>
void Tile(int64_t depth, Matrix a, const float* b, int64_t ldb, float* c, int64_t ldc, Into into) {
  Vector sum[rows][vectors] = {};
  if (into == Into::kSum)
    for (int i = 0; i < rows; ++i)
      for (int v = 0; v < vectors; ++v) sum[i][v] = reinterpret_cast<const Vector*>(c + i * ldc)[v];
  if (into == Into::kMemory)
    for (int i = 0; i < rows; ++i)
      for (int v = 0; v < vectors; ++v) __builtin_prefetch(c + (kAhead * rows + i) * ldc + v * kLanes, 0, 2);
  const float* left = a.data;
  for (int64_t p = 0; p < depth; ++p, left += a.column, b += ldb) {
    const Vector* right = reinterpret_cast<const Vector*>(b);
    for (int i = 0; i < rows; ++i)
      for (int v = 0; v < vectors; ++v) sum[i][v] += left[i * a.row] * right[v];
  }
  for (int i = 0; i < rows; ++i)
    for (int v = 0; v < vectors; ++v) reinterpret_cast<Vector*>(c + i * ldc)[v] = sum[i][v];
}

// The first `width` columns of a strip that is `vectors` wide; columns past them are the strip's padding.
template <int rows, int vectors>
void Edge(int64_t depth, Matrix a, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t width, Into into) {
  if (width == vectors * kLanes) return Tile<rows, vectors>(depth, a, b, ldb, c, ldc, into);
  float whole[rows * vectors * kLanes] = {};
  if (into == Into::kSum)
    for (int i = 0; i < rows; ++i) std::copy_n(c + i * ldc, width, whole + i * vectors * kLanes);
  Tile<rows, vectors>(depth, a, b, ldb, whole, vectors * kLanes, into == Into::kSum ? into : Into::kNew);
  for (int i = 0; i < rows; ++i) std::copy_n(whole + i * vectors * kLanes, width, c + i * ldc);
}

template <int vectors, int... rest>
void LastRows(int64_t m, std::integer_sequence<int, rest...>, int64_t depth, Matrix a, const float* b, int64_t ldb,
              float* c, int64_t ldc, int64_t width, Into into) {
  (void)((m == rest + 1 && (Edge<rest + 1, vectors>(depth, a, b, ldb, c, ldc, width, into), true)) || ...);
}

template <int vectors>
void Strip(int64_t m, int64_t depth, Matrix a, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t width,
           Into into) {
  constexpr int rows = vectors == kVectors ? kRows : 2 * kRows;  // narrow strips leave registers for more rows
  int64_t i = 0;
  for (; i + rows <= m; i += rows)
    Edge<rows, vectors>(depth, {a.at(i, 0), a.row, a.column}, b, ldb, c + i * ldc, ldc, width, into);
  LastRows<vectors>(m - i, std::make_integer_sequence<int, rows - 1>(), depth, {a.at(i, 0), a.row, a.column}, b, ldb,
                    c + i * ldc, ldc, width, into);
}

// One stage of a transposition in registers: swaps the off-diagonal blocks of `distance`.
template <int distance, int... lane>
void Swap(Vector* v, std::integer_sequence<int, lane...>) {
#ifdef __clang__
  const auto shuffle = [](Vector a, Vector b, auto... from) { return __builtin_shufflevector(a, b, from()...); };
#else  // GCC before 12 knows only its own
  const auto shuffle = [](Vector a, Vector b, auto... from) { return __builtin_shuffle(a, b, (Lanes){from()...}); };
#endif
  for (int i = 0; i < kLanes; ++i) {
    if (i & distance) continue;
    const Vector a = v[i], b = v[i + distance];
    v[i] = shuffle(a, b, At<(lane & distance ? kLanes + lane - distance : lane)>()...);
    v[i + distance] = shuffle(a, b, At<(lane & distance ? kLanes + lane : lane + distance)>()...);
  }
}

// Copies [depth, width] of B to `to`, rows `stride` long whose columns past `width` are zero.
inline void Pack(int64_t depth, int64_t width, Matrix b, float* to, int64_t stride) {
  if (b.column == 1) {
    for (int64_t p = 0; p < depth; ++p) {
      std::copy_n(b.at(p, 0), width, to + p * stride);
      std::fill(to + p * stride + width, to + (p + 1) * stride, 0.0f);
    }
    return;
  }
  const int64_t whole = b.row == 1 ? depth / kLanes * kLanes : 0;
  for (int64_t j = 0; j < stride; j += kLanes) {
    const bool full = j + kLanes <= width;
    for (int64_t p = 0; full && p < whole; p += kLanes) {
      constexpr auto lanes = std::make_integer_sequence<int, kLanes>();
      Vector v[kLanes];
      for (int i = 0; i < kLanes; ++i) v[i] = *reinterpret_cast<const Vector*>(b.at(p, j + i));
      Swap<1>(v, lanes), Swap<2>(v, lanes), Swap<4>(v, lanes);
      if constexpr (kLanes == 16) Swap<8>(v, lanes);
      for (int i = 0; i < kLanes; ++i) *reinterpret_cast<Vector*>(to + (p + i) * stride + j) = v[i];
    }
    for (int64_t p = full ? whole : 0; p < depth; ++p)
      for (int64_t i = j; i < j + kLanes; ++i) to[p * stride + i] = i < width ? *b.at(p, i) : 0.0f;
  }
}

// C [m, n] = A [m, depth] * B [depth, n], or C += that.
inline void Multiply(int64_t m, int64_t n, int64_t depth, Matrix a, Matrix b, float* c, int64_t ldc,
                     Into into = Into::kNew) {
  alignas(64) static thread_local float packed[kDepth * kWidth];
  if (depth == 0 && into != Into::kSum)
    for (int64_t i = 0; i < m; ++i) std::fill_n(c + i * ldc, n, 0.0f);
  for (int64_t p = 0; p < depth; p += kDepth) {
    const int64_t deep = std::min(kDepth, depth - p);
    const Matrix left = {a.at(0, p), a.row, a.column};
    for (int64_t j = 0; j < n; j += kWidth) {
      const int64_t width = std::min<int64_t>(kWidth, n - j);
      const int64_t vectors = width > 2 * kLanes ? kVectors : width > kLanes ? 2 : 1, stride = vectors * kLanes;
      const float* strip = b.at(p, j);
      int64_t ldb = b.row;
      if (b.column != 1 || width != stride || m >= kPackRows) {
        Pack(deep, width, {strip, b.row, b.column}, packed, stride);
        strip = packed, ldb = stride;
      }
      const auto take = vectors == 1 ? Strip<1> : vectors == 2 ? Strip<2> : Strip<kVectors>;
      take(m, deep, left, strip, ldb, c + j, ldc, width, p > 0 ? Into::kSum : into);
    }
  }
}

}  // namespace slicedice

#endif
