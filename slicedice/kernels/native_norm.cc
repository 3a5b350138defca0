// RMSNorm with a gain over the last axis for CPUs, in float32, and RoPE of what comes of it: each row is read once, and
// each gradient written once. Gains' gradients are summed by blocks of rows, so that they do not depend on how many
// threads there are.

#include <cmath>
#include <cstdint>
#include <vector>

#include "native_math.h"
#include "native_pool.h"
#include "native_product.h"

namespace slicedice {
namespace {

constexpr int64_t kBlock = 128;  // rows of a task

// Turns the pair (j, j + half) of each head by an angle, whose cosines and sines are [positions, half]; of no columns,
// nothing is turned.
struct Rope {
  const float *cos, *sin;
  int64_t positions, half;

  Rope(const Floats& cos, const Floats& sin)
      : cos(cos.typed_data()), sin(sin.typed_data()), positions(cos.dimensions()[0]), half(cos.dimensions()[1]) {}

  // In place, of a row of a batch [B, S]; back where `direction` is -1.
  void Turn(int64_t row, int64_t width, float direction, float* x) const {
    const int64_t at = row % positions * half;
    for (int64_t head = 0; half && head < width; head += 2 * half) {
      float *__restrict low = x + head, *__restrict high = low + half;
      for (int64_t j = 0; j < half; ++j) {
        const float c = cos[at + j], s = direction * sin[at + j], a = low[j], b = high[j];
        low[j] = a * c - b * s;
        high[j] = b * c + a * s;
      }
    }
  }
};

// Calls function(block, row) for all rows of x, those of a block in order and in one thread.
template <typename Function>
void ForRows(ffi::ThreadPool& pool, const Floats& x, Function function) {
  const int64_t rows = x.element_count() / x.dimensions().back();
  ForEach(pool, (rows + kBlock - 1) / kBlock, [&](int64_t block) {
    for (int64_t row = block * kBlock; row < std::min(rows, (block + 1) * kBlock); ++row) function(block, row);
  });
}

float Scale(const float* x, int64_t width, float eps) { return 1.0f / std::sqrt(Dot(x, x, width) / width + eps); }

ffi::Error Norm(ffi::ThreadPool pool, Floats x, Floats gain, Floats cos, Floats sin, float eps, Result out) {
  const int64_t width = gain.element_count();
  const Rope rope(cos, sin);
  ForRows(pool, x, [&](int64_t, int64_t row) {
    const float *__restrict from = x.typed_data() + row * width, *__restrict gains = gain.typed_data();
    float* __restrict to = out->typed_data() + row * width;
    const float scale = Scale(from, width, eps);
    for (int64_t i = 0; i < width; ++i) to[i] = from[i] * scale * gains[i];
    rope.Turn(row, width, 1, to);
  });
  return ffi::Error::Success();
}

ffi::Error NormBackward(ffi::ThreadPool pool, Floats x, Floats gain, Floats cos, Floats sin, Floats grad, float eps,
                        Result dx, Result dgain) {
  const int64_t width = gain.element_count(), blocks = (x.element_count() / width + kBlock - 1) / kBlock;
  const Rope rope(cos, sin);
  std::vector<float> parts(blocks * width, 0.0f);
  ForRows(pool, x, [&](int64_t block, int64_t row) {
    static thread_local std::vector<float> turned;
    turned.assign(grad.typed_data() + row * width, grad.typed_data() + (row + 1) * width);
    rope.Turn(row, width, -1, turned.data());
    const float *__restrict from = x.typed_data() + row * width, *__restrict gains = gain.typed_data();
    float *__restrict g = turned.data(), *__restrict part = parts.data() + block * width;
    float* __restrict to = dx->typed_data() + row * width;
    const float scale = Scale(from, width, eps);
    for (int64_t i = 0; i < width; ++i) {
      part[i] += g[i] * from[i] * scale;
      g[i] *= gains[i];
    }
    const float along = scale * scale * Dot(g, from, width) / width;
    for (int64_t i = 0; i < width; ++i) to[i] = scale * (g[i] - along * from[i]);
  });
  std::fill_n(dgain->typed_data(), width, 0.0f);
  for (int64_t block = 0; block < blocks; ++block)
    for (int64_t i = 0; i < width; ++i) dgain->typed_data()[i] += parts[block * width + i];
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(SlicediceNorm, Norm,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Attr<float>("eps")
                                  .Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(SlicediceNormBackward, NormBackward,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Arg<Floats>()
                                  .Attr<float>("eps")
                                  .Ret<Floats>()
                                  .Ret<Floats>());

}  // namespace slicedice
