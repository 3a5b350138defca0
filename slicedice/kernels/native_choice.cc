// The choice of experts on CPUs, in float32: their probabilities, the highest of them, and their tokens one after another.

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "native_math.h"
#include "native_pool.h"

namespace slicedice {
namespace {

constexpr int64_t kPiece = 32;  // tokens or rows of a task

// Calls function(begin, end) for pieces of 0 to `count`.
template <typename Function>
void ForPieces(ffi::ThreadPool& pool, int64_t count, Function function) {
  ForEach(pool, (count + kPiece - 1) / kPiece,
          [&](int64_t i) { function(i * kPiece, std::min(count, (i + 1) * kPiece)); });
}

// The k highest of each row's scores, highest first, ties to the lower index. Where scores are no numbers, any k.
//
// Scores lie in vectors of which each one's highest is known: taking one costs a look at these and at one vector.
ffi::Error TopK(ffi::ThreadPool pool, Floats scores, ffi::ResultBuffer<ffi::S32> chosen) {
  const int64_t n = scores.dimensions().back(), k = chosen->dimensions().back();
  const int64_t rows = scores.element_count() / n, vectors = (n + kLanes - 1) / kLanes;
  constexpr float kTaken = -std::numeric_limits<float>::infinity(), kNone = std::numeric_limits<float>::lowest();
  ForPieces(pool, rows, [&](int64_t begin, int64_t end) {
    static thread_local std::vector<float> left, highest;
    left.resize(vectors * kLanes), highest.resize(vectors);
    const auto look = [&](int64_t v) {
      highest[v] = *std::max_element(left.data() + v * kLanes, left.data() + (v + 1) * kLanes);
    };
    for (int64_t row = begin; row < end; ++row) {
      std::fill(left.begin(), left.end(), kTaken);
      // What is no number, or below all, counts as the lowest: only what was taken is `kTaken`.
      for (int64_t i = 0; i < n; ++i) left[i] = std::max(kNone, scores.typed_data()[row * n + i]);
      for (int64_t v = 0; v < vectors; ++v) look(v);
      for (int64_t i = 0; i < k; ++i) {
        const int64_t v = std::max_element(highest.begin(), highest.end()) - highest.begin();
        const float* first = left.data() + v * kLanes;
        const int64_t place = std::find(first, first + kLanes, highest[v]) - left.data();
        chosen->typed_data()[row * k + i] = place;
        left[place] = kTaken;
        look(v);
      }
    }
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

// Places of keys from 0 to n - 1, those of a key one after another, in order.
ffi::Error Sorted(Ints keys, int64_t n, ffi::ResultBuffer<ffi::S32> places) {
  std::vector<int32_t> next(n + 1, 0);
  for (size_t i = 0; i < keys.element_count(); ++i) {
    const int32_t key = keys.typed_data()[i];
    if (key < 0 || key >= n) return ffi::Error(ffi::ErrorCode::kInvalidArgument, "a key is not from 0 to n - 1");
    ++next[key + 1];
  }
  for (int64_t key = 0; key < n; ++key) next[key + 1] += next[key];
  for (size_t i = 0; i < keys.element_count(); ++i) places->typed_data()[next[keys.typed_data()[i]]++] = i;
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
                              ffi::Ffi::Bind().Arg<Ints>().Attr<int64_t>("n").Ret<ffi::Buffer<ffi::S32>>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(SlicediceTopK, TopK,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Ret<ffi::Buffer<ffi::S32>>());

}  // namespace slicedice
