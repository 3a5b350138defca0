// The choice of experts on CPUs.

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

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(SlicediceTopK, TopK,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Ret<ffi::Buffer<ffi::S32>>());

}  // namespace slicedice
