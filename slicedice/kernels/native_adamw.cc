// AdamW for CPUs, in float32, of all of a model's arrays in one call: each is read and written once a step, where XLA goes
// over it four times.

#include <cstdint>
#include <numeric>
#include <vector>

#include "native_math.h"
#include "native_pool.h"

namespace slicedice {
namespace {

// The sum of squares of all arrays, added up by parts, so that it does not depend on how many threads there are.
ffi::Error SumOfSquares(ffi::ThreadPool pool, ffi::RemainingArgs arrays, Result out) {
  double total = 0;
  for (size_t i = 0; i < arrays.size(); ++i) {
    auto array = arrays.get<Floats>(i);
    if (array.has_error()) return array.error();
    const float* from = array->typed_data();
    std::vector<float> sums(array->element_count() / kAtOnce + 1, 0.0f);
    ForParts(pool, array->element_count(),
             [&](int64_t begin, int64_t count) { sums[begin / kAtOnce] = Dot(from + begin, from + begin, count); });
    total = std::accumulate(sums.begin(), sums.end(), total);
  }
  *out->typed_data() = total;
  return ffi::Error::Success();
}

// Of N arrays: parameters, first and second moments, and gradients, N each; new parameters and moments come out, mostly in
// the place of the old ones. `numbers` are the factor of gradients, the learning rate, weight decay, and what the moments
// are divided by.
ffi::Error AdamW(ffi::ThreadPool pool, Floats numbers, ffi::RemainingArgs arguments, ffi::RemainingRets results, float b1,
                 float b2, float eps) {
  const float* number = numbers.typed_data();
  const float factor = number[0], rate = number[1], decay = number[2], by_mean = number[3], by_square = number[4];
  const size_t arrays = results.size() / 3;
  for (size_t i = 0; i < arrays; ++i) {
    const float* from[4];
    float* to[3];
    int64_t total = 0;
    for (int which = 0; which < 4; ++which) {
      auto array = arguments.get<Floats>(which * arrays + i);
      if (array.has_error()) return array.error();
      from[which] = array->typed_data(), total = array->element_count();
    }
    for (int which = 0; which < 3; ++which) {
      auto array = results.get<Floats>(which * arrays + i);
      if (array.has_error()) return array.error();
      to[which] = (*array)->typed_data();
    }
    ForParts(pool, total, [&](int64_t at, int64_t count) {
      Elementwise<4, 3>(count, {from[0] + at, from[1] + at, from[2] + at, from[3] + at}, {to[0] + at, to[1] + at, to[2] + at},
                        [&](Vector* in, Vector* out) {
                          const Vector grad = in[3] * factor;
                          out[1] = b1 * in[1] + (1 - b1) * grad;
                          out[2] = b2 * in[2] + (1 - b2) * grad * grad;
                          const Vector step = out[1] / by_mean / (Sqrt(out[2] / by_square) + eps);
                          out[0] = in[0] - rate * (step + decay * in[0]);
                        });
    });
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(SlicediceSumOfSquares, SumOfSquares,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(SlicediceAdamW, AdamW,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .RemainingArgs()
                                  .RemainingRets()
                                  .Attr<float>("b1")
                                  .Attr<float>("b2")
                                  .Attr<float>("eps"));

}  // namespace slicedice
