// AdamW for CPUs, in float32, of all of a model's arrays in one call: each is read and written once a step, where XLA goes
// over it four times.

#include <cstdint>
#include <numeric>
#include <vector>

#include "native_math.h"
#include "native_pool.h"

namespace slicedice {
namespace {

constexpr int64_t kAtOnce = 1 << 14;  // numbers of a task

// Parts of arrays of these sizes, in order: which array, from where, how many.
struct Part {
  size_t array;
  int64_t begin, count;
};

std::vector<Part> PartsOf(const std::vector<int64_t>& sizes) {
  std::vector<Part> parts;
  for (size_t array = 0; array < sizes.size(); ++array)
    for (int64_t begin = 0; begin < sizes[array]; begin += kAtOnce)
      parts.push_back({array, begin, std::min(kAtOnce, sizes[array] - begin)});
  return parts;
}

// The sum of squares of all arrays, by parts, so that it does not depend on how many threads there are.
ffi::Error SumOfSquares(ffi::ThreadPool pool, ffi::RemainingArgs arrays, Result out) {
  std::vector<const float*> data;
  std::vector<int64_t> sizes;
  for (size_t i = 0; i < arrays.size(); ++i) {
    auto array = arrays.get<Floats>(i);
    if (array.has_error()) return array.error();
    data.push_back(array->typed_data());
    sizes.push_back(array->element_count());
  }
  const auto parts = PartsOf(sizes);
  std::vector<double> sums(parts.size());
  ForEach(pool, parts.size(), [&](int64_t i) {
    const float* from = data[parts[i].array] + parts[i].begin;
    sums[i] = Dot(from, from, parts[i].count);
  });
  *out->typed_data() = std::accumulate(sums.begin(), sums.end(), 0.0);
  return ffi::Error::Success();
}

// Of N arrays: parameters, first and second moments, and gradients, N each; new parameters and moments come out, mostly in
// the place of the old ones. `numbers` are the factor of gradients, the learning rate, weight decay, and what the moments
// are divided by.
ffi::Error AdamW(ffi::ThreadPool pool, Floats numbers, ffi::RemainingArgs arguments, ffi::RemainingRets results, float b1,
                 float b2, float eps) {
  const size_t arrays = results.size() / 3;
  std::vector<const float*> from;
  std::vector<float*> to;
  std::vector<int64_t> sizes;
  for (size_t i = 0; i < arguments.size(); ++i) {
    auto array = arguments.get<Floats>(i);
    if (array.has_error()) return array.error();
    from.push_back(array->typed_data());
    if (i < arrays) sizes.push_back(array->element_count());
  }
  for (size_t i = 0; i < results.size(); ++i) {
    auto array = results.get<Floats>(i);
    if (array.has_error()) return array.error();
    to.push_back((*array)->typed_data());
  }
  const float* number = numbers.typed_data();
  const float factor = number[0], rate = number[1], decay = number[2], by_mean = number[3], by_square = number[4];
  const auto parts = PartsOf(sizes);
  ForEach(pool, parts.size(), [&](int64_t i) {
    const size_t array = parts[i].array;
    const int64_t begin = parts[i].begin, count = parts[i].count;
    auto in = [&](int which) { return from[which * arrays + array] + begin; };
    auto out = [&](int which) { return to[which * arrays + array] + begin; };
    Elementwise<4, 3>(count, {in(0), in(1), in(2), in(3)}, {out(0), out(1), out(2)}, [&](Vector* in, Vector* out) {
      const Vector grad = in[3] * factor;
      out[1] = b1 * in[1] + (1 - b1) * grad;
      out[2] = b2 * in[2] + (1 - b2) * grad * grad;
      out[0] = in[0] - rate * (out[1] / by_mean / (Sqrt(out[2] / by_square) + eps) + decay * in[0]);
    });
  });
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
