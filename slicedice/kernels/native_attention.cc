// Causal softmax attention for CPUs, in float32. Scores of a few queries at a time stay in a core's cache, those of keys
// past the last of these queries are never computed, and the backward pass computes the others again from one number a
// row (FlashAttention-2, arXiv 2307.08691). A task is one head of one sequence, whose gradients nobody else sums into.

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "native_math.h"
#include "native_pool.h"
#include "native_product.h"

namespace slicedice {
namespace {

constexpr int64_t kScores = 1 << 15;  // of so many floats, scores and their gradients fit a core's cache beside the rest
constexpr int64_t kMostQueries = 60, kFewestQueries = 12;

int64_t Padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// An odd number of vectors: rows that lie a power of two apart would share a few sets of a cache.
int64_t Stride(int64_t n) { return Padded(n) + (Padded(n) / kLanes % 2 ? 0 : kLanes); }

using Shape = ffi::Span<const int64_t>;

// Of arrays [..., S, H, C], the head that a task is about.
struct Head {
  int64_t positions, width, row, offset;

  Head(Shape shape, int64_t task) {
    const int64_t* last = shape.end();
    positions = last[-3], width = last[-1], row = last[-2] * width;
    offset = task / last[-2] * positions * row + task % last[-2] * width;
  }

  // How many there are.
  static int64_t Count(Shape shape) {
    int64_t count = shape.end()[-2];
    for (const int64_t* size = shape.begin(); size < shape.end() - 3; ++size) count *= *size;
    return count;
  }

  Matrix of(const Floats& x, int64_t from = 0) const { return {x.typed_data() + offset + from * row, row, 1}; }
  float* of(Result& x, int64_t from = 0) const { return x->typed_data() + offset + from * row; }
  int64_t queries() const { return std::clamp(kScores / positions / kRows * kRows, kFewestQueries, kMostQueries); }

  // [width, positions], rows as long as `Padded(positions)`.
  Matrix Transposed(const Floats& x, std::vector<float>& to) const {
    to.resize(width * Stride(positions));
    Pack(width, positions, {x.typed_data() + offset, 1, row}, to.data(), Stride(positions));
    return {to.data(), Stride(positions), 1};
  }
};

// Calls function(vector, which of its lanes are of the first `count`) for each vector of a row.
template <typename Function>
void Masked(int64_t count, int64_t width, Function function) {
  Lanes index;
  for (int lane = 0; lane < kLanes; ++lane) index[lane] = lane;
  for (int64_t i = 0; i < width; i += kLanes) function(i, index < static_cast<int32_t>(count - i));
}

Vector& At(float* x) { return *reinterpret_cast<Vector*>(x); }

float Sum(Vector x) {
  float sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += x[lane];
  return sum;
}

float Most(const float* x, int64_t count) {
  float most = -std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < count; ++i) most = std::max(most, x[i]);
  return most;
}

ffi::Error Attend(ffi::ThreadPool pool, Floats query, Floats key, Floats value, Result out, Result log_sums) {
  const Shape shape = query.dimensions();
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape.back()));
  ForEach(pool, Head::Count(shape), [&](int64_t task) {
    const Head head(shape, task);
    const int64_t stride = Stride(head.positions), at_once = head.queries();
    static thread_local std::vector<float> keys, scores;
    const Matrix transposed = head.Transposed(key, keys);
    scores.resize(at_once * stride);
    for (int64_t begin = 0; begin < head.positions; begin += at_once) {
      const int64_t end = std::min(begin + at_once, head.positions), m = end - begin;
      Multiply(m, end, head.width, head.of(query, begin), transposed, scores.data(), stride);
      for (int64_t i = 0; i < m; ++i) {
        float* row = scores.data() + i * stride;
        const int64_t count = begin + i + 1;
        const float most = scale * Most(row, count);
        Vector sum = {};
        Masked(count, Padded(end), [&](int64_t j, Lanes inside) {
          const Vector share = Exp(At(row + j) * scale - most);
          sum += At(row + j) = inside ? share : Vector{};
        });
        const float total = Sum(sum), share = 1.0f / total;
        log_sums->typed_data()[task * head.positions + begin + i] = most + std::log(total);
        for (int64_t j = 0; j < Padded(end); j += kLanes) At(row + j) *= share;
      }
      Multiply(m, head.width, end, {scores.data(), stride, 1}, head.of(value), head.of(out, begin), head.row);
    }
  });
  return ffi::Error::Success();
}

ffi::Error AttendBackward(ffi::ThreadPool pool, Floats query, Floats key, Floats value, Floats out, Floats log_sums,
                          Floats grad, Result dquery, Result dkey, Result dvalue) {
  const Shape shape = query.dimensions();
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape.back()));
  ForEach(pool, Head::Count(shape), [&](int64_t task) {
    const Head head(shape, task);
    const int64_t stride = Stride(head.positions), at_once = head.queries();
    static thread_local std::vector<float> keys, values, shares, grads;
    const Matrix transposed_keys = head.Transposed(key, keys), transposed_values = head.Transposed(value, values);
    shares.resize(at_once * stride), grads.resize(at_once * stride);
    // The last queries first: they read all keys, whose gradients are so written, and then summed into.
    const int64_t blocks = (head.positions + at_once - 1) / at_once;
    for (int64_t block = blocks - 1; block >= 0; --block) {
      const int64_t begin = block * at_once, end = std::min(begin + at_once, head.positions), m = end - begin;
      const Into into = block == blocks - 1 ? Into::kNew : Into::kSum;
      const Matrix queries = head.of(query, begin), outs = head.of(out, begin), dout = head.of(grad, begin);
      Multiply(m, end, head.width, queries, transposed_keys, shares.data(), stride);
      Multiply(m, end, head.width, dout, transposed_values, grads.data(), stride);
      for (int64_t i = 0; i < m; ++i) {
        float *share = shares.data() + i * stride, *dscore = grads.data() + i * stride;
        const float log_sum = log_sums.typed_data()[task * head.positions + begin + i];
        float mean = 0;  // of the gradients of a row's shares, by these
        for (int64_t c = 0; c < head.width; ++c) mean += *outs.at(i, c) * *dout.at(i, c);
        Masked(begin + i + 1, Padded(end), [&](int64_t j, Lanes inside) {
          const Vector p = Exp(At(share + j) * scale - log_sum), ds = p * (At(dscore + j) - mean) * scale;
          At(share + j) = inside ? p : Vector{};
          At(dscore + j) = inside ? ds : Vector{};
        });
      }
      const Matrix by_key = {shares.data(), 1, stride}, ds = {grads.data(), stride, 1}, ds_by_key = {grads.data(), 1, stride};
      Multiply(end, head.width, m, by_key, dout, head.of(dvalue), head.row, into);
      Multiply(end, head.width, m, ds_by_key, queries, head.of(dkey), head.row, into);
      Multiply(m, head.width, end, ds, head.of(key), head.of(dquery, begin), head.row);
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(SlicediceAttend, Attend,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(SlicediceAttendBackward, AttendBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>());

}  // namespace slicedice
