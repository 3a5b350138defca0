// A product on a core, C = A * B or C += A * B.
//
// Both factors are read with two strides, so that a transposed one needs no copy of its own. B is taken in strips a
// few vectors wide, which are packed and transposed on the way where B is transposed and rows are many. With few rows
// a product takes as long as reading B does: while a strip is multiplied, the next is asked for. Sums run over the depth
// in order for every element, so results do not depend on how threads share tiles, nor on how many rows there are, but
// for one rounding where C is added to.

#include "native_product.h"

namespace slicedice {
namespace {

constexpr int64_t kDepth = 256, kShallow = 64;  // of a strip
constexpr int kAhead = 2;  // tiles ahead of which lines of such a C are asked for; a core waits for few at a time

// Where the next strip of B begins, and how far apart in memory its parts are that one step of the depth asks for.
struct Ahead {
  const float* data;
  int64_t step;
};

// Asks for `lines` lines of the next strip at each step. (Asking for what lies past the end of B does no harm.)
template <int rows, int vectors, int lines>
void Tile(int64_t depth, Matrix a, const float* b, int64_t ldb, float* c, int64_t ldc, Into into, Ahead next) {
  Vector sum[rows][vectors] = {};
  if (into == Into::kSum)
    for (int i = 0; i < rows; ++i)
      for (int v = 0; v < vectors; ++v) sum[i][v] = reinterpret_cast<const Vector*>(c + i * ldc)[v];
  if (into == Into::kMemory)
    for (int i = 0; i < rows; ++i)
      for (int v = 0; v < vectors; ++v) __builtin_prefetch(c + (kAhead * rows + i) * ldc + v * kLanes, 0, 2);
  const float* left = a.data;
  for (int64_t p = 0; p < depth; ++p, left += a.column, b += ldb, next.data += next.step) {
    for (int line = 0; line < lines; ++line) __builtin_prefetch(next.data + line * kLanes);
    const Vector* right = reinterpret_cast<const Vector*>(b);
    for (int i = 0; i < rows; ++i)
      for (int v = 0; v < vectors; ++v) sum[i][v] += left[i * a.row] * right[v];
  }
  for (int i = 0; i < rows; ++i)
    for (int v = 0; v < vectors; ++v) reinterpret_cast<Vector*>(c + i * ldc)[v] = sum[i][v];
}

// The first `width` columns of a strip that is `vectors` wide; columns past them are the strip's padding.
template <int rows, int vectors, int lines>
void Edge(int64_t depth, Matrix a, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t width, Into into,
          Ahead next) {
  if (width == vectors * kLanes) return Tile<rows, vectors, lines>(depth, a, b, ldb, c, ldc, into, next);
  float whole[rows * vectors * kLanes] = {};
  if (into == Into::kSum)
    for (int i = 0; i < rows; ++i) std::copy_n(c + i * ldc, width, whole + i * vectors * kLanes);
  Tile<rows, vectors, lines>(depth, a, b, ldb, whole, vectors * kLanes, into == Into::kSum ? into : Into::kNew, next);
  for (int i = 0; i < rows; ++i) std::copy_n(whole + i * vectors * kLanes, width, c + i * ldc);
}

// Rows of a tile that is `vectors` wide: narrow ones leave registers for more.
template <int vectors>
constexpr int kTileRows = vectors == kVectors ? kRows : 2 * kRows;

// A tile of m rows, which are `rows` at most.
template <int vectors, int lines, int rows = kTileRows<vectors>>
void Rows(int64_t m, int64_t depth, Matrix a, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t width,
          Into into, Ahead next) {
  if (m == rows) return Edge<rows, vectors, lines>(depth, a, b, ldb, c, ldc, width, into, next);
  if constexpr (rows > 1) Rows<vectors, lines, rows - 1>(m, depth, a, b, ldb, c, ldc, width, into, next);
}

template <int vectors>
void Strip(int64_t m, int64_t depth, Matrix a, const float* b, int64_t ldb, float* c, int64_t ldc, int64_t width,
           Into into, Ahead next) {
  constexpr int64_t rows = kTileRows<vectors>;
  // The lines of the next strip's rows are asked for one by one by the first tiles, or, of few, all by the first.
  const auto first = m > (vectors - 1) * rows ? Rows<vectors, 1> : Rows<vectors, vectors>;
  const int64_t asking = m > (vectors - 1) * rows ? vectors * rows : rows;
  for (int64_t i = 0; i < m; i += rows) {
    const auto tile = i < asking ? first : Rows<vectors, 0>;
    tile(std::min(rows, m - i), depth, {a.at(i, 0), a.row, a.column}, b, ldb, c + i * ldc, ldc, width, into, next);
    next.data += kLanes;
  }
}

// The first `width` lanes of a result, written or summed.
void Put(Vector result, float* to, int64_t width, Into into) {
  const auto put = [&](auto bytes) {
    Vector sum = {};
    if (into == Into::kSum) std::memcpy(&sum, to, bytes);
    sum += result;
    std::memcpy(to, &sum, bytes);
  };
  // A size known when compiling makes each copy one instruction.
  if (width == kLanes) return put(std::integral_constant<size_t, sizeof(Vector)>());
  put(width * sizeof(float));
}

// C = A * B or C += that for a transposed B and m rows, at most `rows`: columns of B are transposed in registers and
// multiplied there, which is as fast as they can be read.
template <int rows>
void MultiplyFewest(int64_t m, int64_t n, int64_t depth, Matrix a, Matrix b, float* c, int64_t ldc, Into into) {
  if constexpr (rows > 1)
    if (m < rows) return MultiplyFewest<rows - 1>(m, n, depth, a, b, c, ldc, into);
  for (int64_t j = 0; j < n; j += kLanes) {
    const int64_t width = std::min<int64_t>(kLanes, n - j);
    const float* next = b.at(0, j + kLanes);  // where columns of B follow each other, that is all of it
    Vector sum[rows] = {}, v[kLanes];
    int64_t p = 0;
    for (; p + kLanes <= depth && width == kLanes; p += kLanes, next += kLanes * kLanes) {
      for (int i = 0; i < kLanes; ++i) __builtin_prefetch(next + i * kLanes);
      Transpose(b.at(p, j), b.column, v);
      for (int q = 0; q < kLanes; ++q)
        for (int i = 0; i < rows; ++i) sum[i] += *a.at(i, p + q) * v[q];
    }
    for (; p < depth; ++p) {
      Vector last = {};
      for (int64_t k = 0; k < width; ++k) last[k] = *b.at(p, j + k);
      for (int i = 0; i < rows; ++i) sum[i] += *a.at(i, p) * last;
    }
    for (int i = 0; i < rows; ++i) Put(sum[i], c + i * ldc + j, width, into);
  }
}

// The same for at most vectors * kLanes rows: C^T = B^T * A^T packs the rows instead of B, and reads B once, in the
// order in which it lies in memory.
template <int vectors>
void MultiplyFew(int64_t m, int64_t n, int64_t depth, Matrix a, Matrix b, float* c, int64_t ldc, Into into) {
  constexpr int64_t stride = vectors * kLanes, tile = kTileRows<vectors>, columns = 8 * tile;
  static_assert(columns % kLanes == 0);
  alignas(64) static thread_local float result[columns * stride];  // a piece of C^T
  static thread_local std::vector<float> packed;                   // A^T
  packed.resize(depth * stride);
  Pack(depth, m, {a.data, a.column, a.row}, packed.data(), stride);
  for (int64_t j = 0; j < n; j += columns) {
    const int64_t end = std::min(columns, n - j);
    for (int64_t k = 0; k < end; k += tile) {
      const Ahead next = {b.at(0, j + k + tile), tile};
      Rows<vectors, 1>(std::min(tile, end - k), depth, {b.at(0, j + k), b.column, b.row}, packed.data(), stride,
                       result + k * stride, stride, stride, Into::kNew, next);
    }
    for (int64_t k = 0; k < end; k += kLanes) {
      for (int64_t i = 0; i < m; i += kLanes) {
        Vector v[kLanes];
        Transpose(result + k * stride + i, stride, v);
        for (int64_t row = i; row < std::min<int64_t>(i + kLanes, m); ++row)
          Put(v[row - i], c + row * ldc + j + k, std::min<int64_t>(kLanes, end - k), into);
      }
    }
  }
}

}  // namespace

void Multiply(int64_t m, int64_t n, int64_t depth, Matrix a, Matrix b, float* c, int64_t ldc, Into into) {
  alignas(64) static thread_local float packed[kDepth * kWidth];
  if (depth == 0 && into != Into::kSum)
    for (int64_t i = 0; i < m; ++i) std::fill_n(c + i * ldc, n, 0.0f);
  const bool transposed = b.column != 1;
  if (transposed && m <= kLanes / 2) return MultiplyFewest<kLanes / 2>(m, n, depth, a, b, c, ldc, into);
  if (transposed && m <= kLanes) return MultiplyFew<1>(m, n, depth, a, b, c, ldc, into);
  if (transposed && m <= 2 * kLanes) return MultiplyFew<2>(m, n, depth, a, b, c, ldc, into);
  if (transposed && m <= kWidth && depth <= kFlat) return MultiplyFew<kVectors>(m, n, depth, a, b, c, ldc, into);
  const int64_t most = m > kFewRows ? kDepth : kShallow;
  for (int64_t p = 0; p < depth; p += most) {
    const int64_t deep = std::min(most, depth - p);
    const Matrix left = {a.at(0, p), a.row, a.column};
    for (int64_t j = 0; j < n; j += kWidth) {
      const int64_t width = std::min<int64_t>(kWidth, n - j);
      const int64_t vectors = width > 2 * kLanes ? kVectors : width > kLanes ? 2 : 1, stride = vectors * kLanes;
      const float* strip = b.at(p, j);
      int64_t ldb = b.row;
      if (transposed || width != stride) {
        Pack(deep, width, {strip, b.row, b.column}, packed, stride);
        strip = packed, ldb = stride;
      }
      const auto take = vectors == 1 ? Strip<1> : vectors == 2 ? Strip<2> : Strip<kVectors>;
      const Ahead next = {j + kWidth < n ? b.at(p, j + kWidth) : b.at(p + most, 0), transposed ? b.column : b.row};
      take(m, deep, left, strip, ldb, c + j, ldc, width, p > 0 ? Into::kSum : into, next);
    }
  }
}

}  // namespace slicedice
