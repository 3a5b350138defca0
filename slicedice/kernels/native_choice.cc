// The choice of experts on CPUs, in float32: their probabilities, the highest of them, and their tokens one after another.

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "native_math.h"
#include "native_pool.h"

namespace slicedice {
namespace {

using Indices = ffi::ResultBuffer<ffi::S32>;

constexpr int64_t kPiece = 32;  // tokens or rows of a task

// Calls function(begin, end) for pieces of 0 to `count`.
template <typename Function>
void ForPieces(ffi::ThreadPool& pool, int64_t count, Function function) {
  ForEach(pool, (count + kPiece - 1) / kPiece,
          [&](int64_t i) { function(i * kPiece, std::min(count, (i + 1) * kPiece)); });
}

// The k highest of each row's shares plus bias, highest first, ties to the lower index, and the shares themselves. Where
// these are no numbers, any k. There is a bias for all rows, or one for each of several models', which lie one after
// another.
//
// Scores lie in vectors of which each one's highest is known: taking one costs a look at these and at one vector.
ffi::Error Select(ffi::ThreadPool pool, Floats shares, Floats bias, Indices chosen, Result weights) {
  const int64_t n = shares.dimensions().back(), k = chosen->dimensions().back();
  const int64_t rows = shares.element_count() / n, vectors = (n + kLanes - 1) / kLanes;
  const int64_t of_a_bias = std::max<int64_t>(1, rows / (bias.element_count() / n));
  constexpr float kTaken = -std::numeric_limits<float>::infinity(), kNone = std::numeric_limits<float>::lowest();
  ForPieces(pool, rows, [&](int64_t begin, int64_t end) {
    static thread_local std::vector<float> left, highest;
    left.resize(vectors * kLanes), highest.resize(vectors);
    const auto look = [&](int64_t v) {
      highest[v] = *std::max_element(left.data() + v * kLanes, left.data() + (v + 1) * kLanes);
    };
    for (int64_t row = begin; row < end; ++row) {
      std::fill(left.begin(), left.end(), kTaken);
      const float *share = shares.typed_data() + row * n, *plus = bias.typed_data() + row / of_a_bias * n;
      // What is no number, or below all, counts as the lowest: only what was taken is `kTaken`.
      for (int64_t i = 0; i < n; ++i) left[i] = std::max(kNone, share[i] + plus[i]);
      for (int64_t v = 0; v < vectors; ++v) look(v);
      for (int64_t i = 0; i < k; ++i) {
        const int64_t v = std::max_element(highest.begin(), highest.end()) - highest.begin();
        const float* first = left.data() + v * kLanes;
        const int64_t place = std::find(first, first + kLanes, highest[v]) - left.data();
        chosen->typed_data()[row * k + i] = place;
        weights->typed_data()[row * k + i] = share[place];
        left[place] = kTaken;
        look(v);
      }
    }
  });
  return ffi::Error::Success();
}

// The gradient of shares by that of the chosen ones.
ffi::Error SelectBackward(ffi::ThreadPool pool, Ints chosen, Floats grad, Result out) {
  const int64_t n = out->dimensions().back(), k = chosen.dimensions().back(), rows = chosen.element_count() / k;
  ForPieces(pool, rows, [&](int64_t begin, int64_t end) {
    std::fill(out->typed_data() + begin * n, out->typed_data() + end * n, 0.0f);
    for (int64_t i = begin * k; i < end * k; ++i)
      out->typed_data()[i / k * n + chosen.typed_data()[i]] = grad.typed_data()[i];
  });
  return ffi::Error::Success();
}

// Of each row its softmax, and the logarithm of the sum of exponentials.
ffi::Error Softmax(ffi::ThreadPool pool, Floats logits, Result shares, Result log_sums) {
  const int64_t n = logits.dimensions().back(), rows = logits.element_count() / n;
  const int64_t padded = (n + kLanes - 1) / kLanes * kLanes;
  ForPieces(pool, rows, [&](int64_t begin, int64_t end) {
    static thread_local std::vector<float> exponentials;
    exponentials.resize(padded);
    for (int64_t row = begin; row < end; ++row) {
      const float* from = logits.typed_data() + row * n;
      float* to = exponentials.data();
      const float most = *std::max_element(from, from + n);
      std::copy_n(from, n, to);
      for (int64_t i = 0; i < padded; i += kLanes) {
        Vector& x = *reinterpret_cast<Vector*>(to + i);
        x = Exp(x - most);
      }
      std::fill(to + n, to + padded, 0.0f);
      Vector sums = {};
      for (int64_t i = 0; i < padded; i += kLanes) sums += *reinterpret_cast<const Vector*>(to + i);
      float sum = 0;
      for (int lane = 0; lane < kLanes; ++lane) sum += sums[lane];
      const float share = 1.0f / sum;
      for (int64_t i = 0; i < n; ++i) shares->typed_data()[row * n + i] = to[i] * share;
      log_sums->typed_data()[row] = most + std::log(sum);
    }
  });
  return ffi::Error::Success();
}

// The gradient of logits, given those of shares and of the logarithms.
ffi::Error SoftmaxBackward(ffi::ThreadPool pool, Floats shares, Floats grad, Floats log_grad, Result out) {
  const int64_t n = shares.dimensions().back(), rows = shares.element_count() / n;
  ForPieces(pool, rows, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float *p = shares.typed_data() + row * n, *g = grad.typed_data() + row * n;
      const float shift = log_grad.typed_data()[row] - Dot(p, g, n);
      float* to = out->typed_data() + row * n;
      for (int64_t i = 0; i < n; ++i) to[i] = p[i] * (g[i] + shift);
    }
  });
  return ffi::Error::Success();
}

// The order that sorts keys from 0 to n, those of one key as they are; which place each comes to; how many there are of
// each but n.
ffi::Error Sorted(Ints keys, Indices order, Indices places, Indices counts) {
  const int64_t n = counts->element_count();
  std::vector<int32_t> next(n + 2, 0);
  for (size_t i = 0; i < keys.element_count(); ++i) {
    const int32_t key = keys.typed_data()[i];
    if (key < 0 || key > n) return ffi::Error(ffi::ErrorCode::kInvalidArgument, "a key is not from 0 to n");
    ++next[key + 1];
  }
  std::copy_n(next.data() + 1, n, counts->typed_data());
  for (int64_t key = 0; key < n; ++key) next[key + 1] += next[key];
  for (size_t i = 0; i < keys.element_count(); ++i) {
    const int32_t place = next[keys.typed_data()[i]]++;
    order->typed_data()[place] = i;
    places->typed_data()[i] = place;
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    SlicediceSoftmax, Softmax,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Ret<Floats>().Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    SlicediceSoftmaxBackward, SoftmaxBackward,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(SlicediceSorted, Sorted,
                              ffi::Ffi::Bind()
                                  .Arg<Ints>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(SlicediceSelect, Select,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    SlicediceSelectBackward, SelectBackward,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Ints>().Arg<Floats>().Ret<Floats>());

}  // namespace slicedice
