// One product on a core, C = A * B or C += A * B, in float32, that serves every direction of a grouped matmul; and what
// its code and its callers share.

#ifndef SLICEDICE_NATIVE_PRODUCT_H_
#define SLICEDICE_NATIVE_PRODUCT_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

namespace slicedice {

#ifdef __AVX512F__
constexpr int kLanes = 16, kVectors = 4, kRows = 6;  // 24 of 32 registers hold sums
#else
constexpr int kLanes = 8, kVectors = 2, kRows = 6;  // 12 of 16
#endif
constexpr int kWidth = kVectors * kLanes;
constexpr int64_t kFewRows = 64;  // rows of A up to which strips are shallow
// Depth up to which transposing C is less work than transposing B, of as many rows as kWidth.
constexpr int64_t kFlat = 2 * kWidth;

// Rows of A to multiply at a time: few, unless they have to pay for packing B.
inline int64_t RowsAtOnce(bool transposed, int64_t depth) { return transposed && depth > kFlat ? 120 : kFewRows; }

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

// v[i][j] = from[j * stride + i], of kLanes by kLanes.
inline void Transpose(const float* from, int64_t stride, Vector* v) {
  constexpr auto lanes = std::make_integer_sequence<int, kLanes>();
  for (int i = 0; i < kLanes; ++i) v[i] = *reinterpret_cast<const Vector*>(from + i * stride);
  Swap<1>(v, lanes), Swap<2>(v, lanes), Swap<4>(v, lanes);
  if constexpr (kLanes == 16) Swap<8>(v, lanes);
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
      Vector v[kLanes];
      Transpose(b.at(p, j), b.column, v);
      for (int i = 0; i < kLanes; ++i) *reinterpret_cast<Vector*>(to + (p + i) * stride + j) = v[i];
    }
    for (int64_t p = full ? whole : 0; p < depth; ++p)
      for (int64_t i = j; i < j + kLanes; ++i) to[p * stride + i] = i < width ? *b.at(p, i) : 0.0f;
  }
}

// C [m, n] = A [m, depth] * B [depth, n], or C += that; rows of C begin `ldc` apart.
void Multiply(int64_t m, int64_t n, int64_t depth, Matrix a, Matrix b, float* c, int64_t ldc, Into into = Into::kNew);

}  // namespace slicedice

#endif
