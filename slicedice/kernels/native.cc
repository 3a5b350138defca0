// Grouped matmul for CPUs, in float32: cost in proportion to rows, no padding, no copies of matrices.
//
// Work is cut into tasks, some rows of one group each (or some columns, for weight gradients), which the threads of
// XLA's pool take one by one. No task waits for another.

#include <cstdint>
#include <string>
#include <vector>

#include "native_math.h"
#include "native_pool.h"
#include "native_product.h"

namespace slicedice {
namespace {

constexpr size_t kCacheBytes = 32 << 20;

struct Task {
  int64_t group, begin, end;  // rows of the arrays, or columns of lhs in a weight gradient
};

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
                      [](Vector* in, Vector* out) { out[0] = Gated(in[0], in[1]); });
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
                        out[2] = GatedBackward(in[0], in[1], in[2], out[0], out[1]);
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
