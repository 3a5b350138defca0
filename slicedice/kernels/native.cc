// Grouped matmul for CPUs, in float32: cost in proportion to rows, no padding, no copies of matrices.
//
// Work is cut into tasks, some rows of one group each (or some columns, for weight gradients), which the threads of
// XLA's pool take one by one. No task waits for another.

#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "native_product.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace slicedice {
namespace {

using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;
using Result = ffi::ResultBuffer<ffi::F32>;

constexpr size_t kCacheBytes = 32 << 20;

struct Task {
  int64_t group, begin, end;  // rows of the arrays, or columns of lhs in a weight gradient
};

// Calls function(i) for each i below `count`, on the pool's threads and this one.
template <typename Function>
void ForEach(ffi::ThreadPool& pool, int64_t count, Function function) {
  struct State {
    std::atomic<int64_t> next{0}, done{0};
  };
  // Threads that come when all is done still look at the counter, after this function has returned.
  auto state = std::make_shared<State>();
  auto work = [state, count, function] {
    for (int64_t i; (i = state->next.fetch_add(1)) < count;) {
      function(i);
      state->done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t i = 1, helpers = std::min(pool.num_threads(), count); i < helpers; ++i) pool.Schedule([work] { work(); });
  work();
  // What is not done yet has been begun by another thread, so it ends without anybody's help.
  while (state->done.load(std::memory_order_acquire) < count) std::this_thread::yield();
}

// Sizes that are traced arrive unchecked: these would be read and written out of bounds.
ffi::Error Check(Ints starts, Ints sizes, int64_t rows) {
  for (size_t g = 0; g < sizes.element_count(); ++g) {
    const int64_t start = starts.typed_data()[g], size = sizes.typed_data()[g];
    if (size < 0 || (size > 0 && (start < 0 || start + size > rows)))
      return ffi::Error(ffi::ErrorCode::kInvalidArgument,
                        "group_sizes have to be at least 0 and sum to at most M = " + std::to_string(rows) + ": " +
                            std::to_string(size) + " of group " + std::to_string(g) + " is not");
  }
  return ffi::Error::Success();
}

// The rows of every group in pieces of at most `at_once`, and zeros in `outs`' rows of no group.
std::vector<Task> RowTasks(Ints starts, Ints sizes, int64_t rows, int64_t at_once,
                           std::initializer_list<Result> outs) {
  std::vector<Task> tasks;
  int64_t covered = 0;
  auto clear = [&](int64_t end) {
    for (Result out : outs) {
      const int64_t width = out->dimensions()[1];
      if (end > covered) std::fill(out->typed_data() + covered * width, out->typed_data() + end * width, 0.0f);
    }
  };
  for (size_t g = 0; g < sizes.element_count(); ++g) {
    const int64_t begin = starts.typed_data()[g], end = begin + sizes.typed_data()[g];
    if (end == begin) continue;
    clear(begin);
    const int64_t pieces = (end - begin + at_once - 1) / at_once;
    for (int64_t i = 0; i < pieces; ++i)
      tasks.push_back({static_cast<int64_t>(g), begin + (end - begin) * i / pieces,
                       begin + (end - begin) * (i + 1) / pieces});
    covered = end;
  }
  clear(rows);
  return tasks;
}

// The matrix of group g, and the same transposed.
Matrix Of(const Floats& x, int64_t g) {
  const int64_t rows = x.dimensions()[1], columns = x.dimensions()[2];
  return {x.typed_data() + g * rows * columns, columns, 1};
}
Matrix Transposed(Matrix x) { return {x.data, x.column, x.row}; }

// Rows of an array from `row` on.
Matrix Rows(const Floats& x, int64_t row) { return {x.typed_data() + row * x.dimensions()[1], x.dimensions()[1], 1}; }
float* Rows(Result& x, int64_t row) { return x->typed_data() + row * x->dimensions()[1]; }

// Results too large to be in a cache when they are written.
Into IntoResult(Result x) { return x->size_bytes() > kCacheBytes ? Into::kMemory : Into::kNew; }

ffi::Error Gmm(ffi::ThreadPool pool, Floats lhs, Floats rhs, Ints starts, Ints sizes, bool transpose_rhs, Result out) {
  const int64_t rows = lhs.dimensions()[0], depth = lhs.dimensions()[1], n = out->dimensions()[1];
  if (ffi::Error error = Check(starts, sizes, rows); error.failure()) return error;
  const std::vector<Task> tasks = RowTasks(starts, sizes, rows, RowsAtOnce(transpose_rhs, depth), {out});
  ForEach(pool, tasks.size(), [&, task = tasks.data()](int64_t i) {
    const auto [group, begin, end] = task[i];
    const Matrix matrix = transpose_rhs ? Transposed(Of(rhs, group)) : Of(rhs, group);
    Multiply(end - begin, n, depth, Rows(lhs, begin), matrix, Rows(out, begin), n, IntoResult(out));
  });
  return ffi::Error::Success();
}

ffi::Error Tgmm(ffi::ThreadPool pool, Floats lhs, Floats rhs, Ints starts, Ints sizes, Result out) {
  const int64_t rows = lhs.dimensions()[0], k = lhs.dimensions()[1], n = rhs.dimensions()[1];
  if (ffi::Error error = Check(starts, sizes, rows); error.failure()) return error;
  const int64_t groups = sizes.element_count(), at_once = RowsAtOnce(false, 0);
  const int64_t pieces = (k + at_once - 1) / at_once;
  ForEach(pool, groups * pieces, [&](int64_t i) {
    const int64_t g = i / pieces, begin = k * (i % pieces) / pieces, end = k * (i % pieces + 1) / pieces;
    // An empty group sums nothing, which is exactly zero.
    const int64_t depth = sizes.typed_data()[g], start = depth ? starts.typed_data()[g] : 0;
    const Matrix left = {lhs.typed_data() + start * k + begin, 1, k};
    Multiply(end - begin, n, depth, left, Rows(rhs, start), out->typed_data() + (g * k + begin) * n, n,
             IntoResult(out));
  });
  return ffi::Error::Success();
}

// e to the x, to a rounding or two: 2^round(x / ln 2) times a polynomial in what is left (Cephes' expf).
Vector Exp(Vector x) {
  const Vector low = Vector{} - 87.0f, high = Vector{} + 88.0f;
  x = x < low ? low : x > high ? high : x;
  const Vector shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: adding it rounds to a whole number
  const Vector n = shifted - 12582912.0f;
  const Vector r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts
  Vector y = Vector{} + 1.9875691500e-4f;
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    y = y * r + c;
  const Lanes power = (__builtin_convertvector(n, Lanes) + 127) << 23;
  Vector scale;
  std::memcpy(&scale, &power, sizeof scale);
  return (y * r * r + r + 1.0f) * scale;
}

// Calls function(in, out) on a vector of each array at a time; the last is filled up with zeros.
template <int inputs, int outputs, typename Function>
void Elementwise(int64_t count, const float* const (&from)[inputs], float* const (&to)[outputs], Function function) {
  auto step = [&](int64_t i, auto bytes) {
    Vector in[inputs] = {}, out[outputs];
    for (int x = 0; x < inputs; ++x) std::memcpy(&in[x], from[x] + i, bytes);
    function(in, out);
    for (int x = 0; x < outputs; ++x) std::memcpy(to[x] + i, &out[x], bytes);
  };
  const int64_t whole = count / kLanes * kLanes;
  // A size known when compiling makes each copy one instruction.
  for (int64_t i = 0; i < whole; i += kLanes) step(i, std::integral_constant<size_t, sizeof(Vector)>());
  if (whole < count) step(whole, (count - whole) * sizeof(float));
}

ffi::Error Ffn(ffi::ThreadPool pool, Floats rows, Floats gate, Floats up, Floats down, Ints starts, Ints sizes,
               Result out, Result gated, Result upped) {
  const int64_t d = rows.dimensions()[1], f = gate.dimensions()[2];
  if (ffi::Error error = Check(starts, sizes, rows.dimensions()[0]); error.failure()) return error;
  const int64_t at_once = RowsAtOnce(false, d);
  const std::vector<Task> tasks = RowTasks(starts, sizes, rows.dimensions()[0], at_once, {out, gated, upped});
  ForEach(pool, tasks.size(), [&, task = tasks.data()](int64_t i) {
    const auto [group, begin, end] = task[i];
    const int64_t m = end - begin;
    static thread_local std::vector<float> hidden;
    hidden.resize(m * f);
    float *a = Rows(gated, begin), *b = Rows(upped, begin);
    Multiply(m, f, d, Rows(rows, begin), Of(gate, group), a, f);
    Multiply(m, f, d, Rows(rows, begin), Of(up, group), b, f);
    Elementwise<2, 1>(m * f, {a, b}, {hidden.data()},
                      [](Vector* in, Vector* out) { out[0] = in[0] / (1.0f + Exp(-in[0])) * in[1]; });
    Multiply(m, d, f, {hidden.data(), f, 1}, Of(down, group), Rows(out, begin), d, IntoResult(out));
  });
  return ffi::Error::Success();
}

// The part of the backward pass that goes row by row: gradients of rows and of the products with gate and up, and
// the hidden values again. What is left are three weight gradients.
ffi::Error FfnRows(ffi::ThreadPool pool, Floats grad, Floats gated, Floats upped, Floats gate, Floats up, Floats down,
                   Ints starts, Ints sizes, Result drows, Result dgated, Result dupped, Result hidden) {
  const int64_t d = grad.dimensions()[1], f = gate.dimensions()[2];
  if (ffi::Error error = Check(starts, sizes, grad.dimensions()[0]); error.failure()) return error;
  const int64_t at_once = RowsAtOnce(true, f);
  const std::vector<Task> tasks =
      RowTasks(starts, sizes, grad.dimensions()[0], at_once, {drows, dgated, dupped, hidden});
  ForEach(pool, tasks.size(), [&, task = tasks.data()](int64_t i) {
    const auto [group, begin, end] = task[i];
    const int64_t m = end - begin;
    static thread_local std::vector<float> dhidden;
    dhidden.resize(m * f);
    Multiply(m, f, d, Rows(grad, begin), Transposed(Of(down, group)), dhidden.data(), f);
    float *da = Rows(dgated, begin), *db = Rows(dupped, begin);
    Elementwise<3, 3>(m * f, {Rows(gated, begin).data, Rows(upped, begin).data, dhidden.data()},
                      {da, db, Rows(hidden, begin)}, [](Vector* in, Vector* out) {
                        const Vector sigmoid = 1.0f / (1.0f + Exp(-in[0])), silu = in[0] * sigmoid;
                        out[0] = in[2] * in[1] * (sigmoid + silu * (1.0f - sigmoid));
                        out[1] = in[2] * silu;
                        out[2] = silu * in[1];
                      });
    Multiply(m, d, f, {da, f, 1}, Transposed(Of(gate, group)), Rows(drows, begin), d, IntoResult(drows));
    Multiply(m, d, f, {db, f, 1}, Transposed(Of(up, group)), Rows(drows, begin), d, Into::kSum);
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(SlicediceGmm, Gmm,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Attr<bool>("transpose_rhs")
                                  .Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(SlicediceTgmm, Tgmm,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(SlicediceFfn, Ffn,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(SlicediceFfnRows, FfnRows,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>());

}  // namespace slicedice
