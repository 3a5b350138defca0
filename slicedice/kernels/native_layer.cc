// The routed experts of a layer on CPUs, in float32, from tokens to tokens: rows sorted by expert are never in memory as
// wide as the model. A task gathers the tokens of a few rows of an expert, multiplies, and adds what comes of it, by
// weight, to sums of its own; sums are as many as the shapes say, so that results do not depend on how many threads
// there are.

#include <cstdint>
#include <vector>

#include "native_math.h"
#include "native_pool.h"
#include "native_product.h"

namespace slicedice {
namespace {

constexpr int64_t kRowsAtOnce = kFewRows;

struct Piece {
  int64_t group, begin, end;
};

// Which assignments [T, K] rows serve that are sorted by expert; T*K for none. The first `used` rows have an expert.
struct Rows {
  std::vector<int64_t> starts;  // of each expert
  std::vector<int32_t> tokens;  // of each row, the first one for none
  int64_t used = 0;
  const int32_t *sizes, *assignments;
  const Floats& weights;

  Rows(const Floats& weights, const Ints& assignment_of, const Ints& sizes)
      : sizes(sizes.typed_data()), assignments(assignment_of.typed_data()), weights(weights) {
    for (size_t g = 0; g < sizes.element_count(); ++g) starts.push_back(used), used += this->sizes[g];
    const int64_t k = weights.dimensions()[1];
    for (int64_t row = 0; row < used; ++row) tokens.push_back(Serves(row) ? assignments[row] / k : 0);
  }

  bool Serves(int64_t row) const { return assignments[row] < static_cast<int64_t>(weights.element_count()); }
  float Weight(int64_t row) const { return Serves(row) ? weights.typed_data()[assignments[row]] : 0.0f; }

  // Pieces of one expert each, in `shares` shares of about as many rows.
  std::vector<std::vector<Piece>> Shares(int64_t shares) const {
    std::vector<std::vector<Piece>> result(shares);
    int64_t before = 0;
    for (size_t g = 0; g < starts.size(); ++g) {
      const int64_t start = starts[g], size = sizes[g], pieces = (size + kRowsAtOnce - 1) / kRowsAtOnce;
      for (int64_t i = 0; i < pieces; ++i) {
        const Piece piece = {static_cast<int64_t>(g), start + size * i / pieces, start + size * (i + 1) / pieces};
        result[std::min(shares - 1, before * shares / used)].push_back(piece);
        before += piece.end - piece.begin;
      }
    }
    return result;
  }

  // Copies rows of x, those of the tokens of rows from `begin` on, one below the other.
  void Gather(const Floats& x, int64_t begin, int64_t count, float* to) const {
    const int64_t width = x.dimensions()[1];
    for (int64_t i = 0; i < count; ++i) std::copy_n(x.typed_data() + tokens[begin + i] * width, width, to + i * width);
  }
};

// to += weight * from.
void Add(float weight, const float* from, float* to, int64_t width) {
  for (int64_t d = 0; d < width; ++d) to[d] += weight * from[d];
}

// The sum of `shares` arrays of `count` numbers.
void AddUp(ffi::ThreadPool& pool, const std::vector<float>& parts, int64_t shares, int64_t count, float* to) {
  ForParts(pool, count, [&](int64_t begin, int64_t some) {
    std::copy_n(parts.data() + begin, some, to + begin);
    for (int64_t share = 1; share < shares; ++share)
      for (int64_t j = begin; j < begin + some; ++j) to[j] += parts[share * count + j];
  });
}

// Of matrices [L, E, rows, columns], those of one layer.
struct OfLayer {
  const Floats& x;
  int64_t layer;

  Matrix operator[](int64_t g) const {
    const int64_t experts = x.dimensions()[1], rows = x.dimensions()[2], columns = x.dimensions()[3];
    return {x.typed_data() + (layer * experts + g) * rows * columns, columns, 1};
  }
};
Matrix Transposed(Matrix x) { return {x.data, x.column, x.row}; }

// What is traced arrives unchecked: it would be read and written out of bounds.
ffi::Error Check(Ints assignment_of, Ints sizes, Floats gate, Ints index) {
  int64_t used = 0;
  bool sound = *index.typed_data() >= 0 && *index.typed_data() < gate.dimensions()[0];
  for (size_t g = 0; g < sizes.element_count(); ++g) sound &= sizes.typed_data()[g] >= 0, used += sizes.typed_data()[g];
  sound &= used <= static_cast<int64_t>(assignment_of.element_count());
  for (int64_t row = 0; sound && row < used; ++row) sound &= assignment_of.typed_data()[row] >= 0;
  if (sound) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kInvalidArgument,
                    "a layer's index, its experts' rows or the assignments that these serve are out of bounds");
}

// out[t] = sum over its k of weights[t, k] * expert(x[t]); saves the products with gate and up.
ffi::Error Layer(ffi::ThreadPool pool, Floats x, Floats weights, Ints assignment_of, Ints sizes, Floats gate, Floats up,
                 Floats down, Ints index, int64_t shares, Result out, Result gated, Result upped) {
  const int64_t tokens = x.dimensions()[0], d = x.dimensions()[1], f = gate.dimensions()[3];
  if (ffi::Error error = Check(assignment_of, sizes, gate, index); error.failure()) return error;
  std::vector<float> sums(shares * tokens * d);
  const OfLayer gates{gate, *index.typed_data()}, ups{up, gates.layer}, downs{down, gates.layer};
  const Rows places(weights, assignment_of, sizes);
  const auto pieces = places.Shares(shares);
  ForEach(pool, shares, [&, sums = sums.data()](int64_t share) {
    static thread_local std::vector<float> rows, hidden, result;
    rows.resize(kRowsAtOnce * d), result.resize(kRowsAtOnce * d), hidden.resize(kRowsAtOnce * f);
    float* sum = sums + share * tokens * d;
    for (const auto [group, begin, end] : pieces[share]) {
      const int64_t m = end - begin;
      const int32_t* token = places.tokens.data() + begin;
      float *a = gated->typed_data() + begin * f, *b = upped->typed_data() + begin * f;
      places.Gather(x, begin, m, rows.data());
      Multiply(m, f, d, {rows.data(), d, 1}, gates[group], a, f);
      Multiply(m, f, d, {rows.data(), d, 1}, ups[group], b, f);
      Elementwise<2, 1>(m * f, {a, b}, {hidden.data()},
                        [](Vector* in, Vector* out) { out[0] = Gated(in[0], in[1]); });
      Multiply(m, d, f, {hidden.data(), f, 1}, downs[group], result.data(), d);
      for (int64_t i = 0; i < m; ++i)
        Add(places.Weight(begin + i), result.data() + i * d, sum + token[i] * d, d);
    }
  });
  AddUp(pool, sums, shares, tokens * d, out->typed_data());
  return ffi::Error::Success();
}

// The gradients of that: of x, of weights, and of the matrices. `da`, `db` and `hidden` are room for rows.
ffi::Error LayerBackward(ffi::ThreadPool pool, Floats x, Floats weights, Ints assignment_of, Ints sizes, Floats gate,
                         Floats up, Floats down, Ints index, Floats gated, Floats upped, Floats grad, int64_t shares,
                         Result dx, Result dweights, Result dgate, Result dup, Result ddown, Result da, Result db,
                         Result hidden) {
  const int64_t tokens = x.dimensions()[0], d = x.dimensions()[1], f = gate.dimensions()[3];
  if (ffi::Error error = Check(assignment_of, sizes, gate, index); error.failure()) return error;
  std::vector<float> sums(shares * tokens * d);
  std::fill_n(dweights->typed_data(), dweights->element_count(), 0.0f);
  const OfLayer gates{gate, *index.typed_data()}, ups{up, gates.layer}, downs{down, gates.layer};
  const Rows places(weights, assignment_of, sizes);
  const auto pieces = places.Shares(shares);
  ForEach(pool, shares, [&, sums = sums.data()](int64_t share) {
    static thread_local std::vector<float> grads, dhidden, result;
    grads.resize(kRowsAtOnce * d), result.resize(kRowsAtOnce * d), dhidden.resize(kRowsAtOnce * f);
    float* sum = sums + share * tokens * d;
    for (const auto [group, begin, end] : pieces[share]) {
      const int64_t m = end - begin;
      const int32_t* token = places.tokens.data() + begin;
      places.Gather(grad, begin, m, grads.data());
      Multiply(m, f, d, {grads.data(), d, 1}, Transposed(downs[group]), dhidden.data(), f);
      for (int64_t i = 0; i < m; ++i) {
        const int64_t at = (begin + i) * f;
        const float weight = places.Weight(begin + i);
        Vector by_weight = {};
        Elementwise<3, 3>(f, {gated.typed_data() + at, upped.typed_data() + at, dhidden.data() + i * f},
                          {da->typed_data() + at, db->typed_data() + at, hidden->typed_data() + at},
                          [&](Vector* in, Vector* out) {
                            const Vector value = GatedBackward(in[0], in[1], weight * in[2], out[0], out[1]);
                            by_weight += value * in[2];
                            out[2] = weight * value;
                          });
        float total = 0;
        for (int lane = 0; lane < kLanes; ++lane) total += by_weight[lane];
        if (places.Serves(begin + i)) dweights->typed_data()[places.assignments[begin + i]] = total;
      }
      const Matrix a = {da->typed_data() + begin * f, f, 1}, b = {db->typed_data() + begin * f, f, 1};
      Multiply(m, d, f, a, Transposed(gates[group]), result.data(), d);
      Multiply(m, d, f, b, Transposed(ups[group]), result.data(), d, Into::kSum);
      for (int64_t i = 0; i < m; ++i) Add(1.0f, result.data() + i * d, sum + token[i] * d, d);
    }
  });
  AddUp(pool, sums, shares, tokens * d, dx->typed_data());
  // Two tasks for each expert, by whose rows they gather: with few experts, threads would else wait for the largest.
  ForEach(pool, 2 * sizes.element_count(), [&](int64_t task) {
    static thread_local std::vector<float> rows;
    const int64_t g = task / 2, size = places.sizes[g], start = places.starts[g];
    rows.resize(size * d);
    const auto into = [&](Result to) { return to->typed_data() + g * d * f; };
    const auto at = [&](Result from) { return from->typed_data() + start * f; };
    if (task % 2) {
      places.Gather(grad, start, size, rows.data());
      Multiply(f, d, size, {at(hidden), 1, f}, {rows.data(), d, 1}, into(ddown), d);
    } else {
      places.Gather(x, start, size, rows.data());
      Multiply(d, f, size, {rows.data(), 1, d}, {at(da), f, 1}, into(dgate), f);
      Multiply(d, f, size, {rows.data(), 1, d}, {at(db), f, 1}, into(dup), f);
    }
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(SlicediceLayer, Layer,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Attr<int64_t>("shares")
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(SlicediceLayerBackward, LayerBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Ints>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Ints>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Attr<int64_t>("shares")
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>()
                                  .Ret<Floats>());

}  // namespace slicedice
