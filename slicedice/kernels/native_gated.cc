// The values between the products of a SwiGLU network that is always on, for CPUs, in float32: all in one pass, where XLA
// keeps three arrays for the backward pass.

#include <cstdint>

#include "native_math.h"
#include "native_pool.h"

namespace slicedice {
namespace {

ffi::Error GatedOf(ffi::ThreadPool pool, Floats a, Floats b, Result out) {
  ForParts(pool, a.element_count(), [&](int64_t begin, int64_t count) {
    Elementwise<2, 1>(count, {a.typed_data() + begin, b.typed_data() + begin}, {out->typed_data() + begin},
                      [](Vector* in, Vector* out) { out[0] = Gated(in[0], in[1]); });
  });
  return ffi::Error::Success();
}

ffi::Error GradientsOfGated(ffi::ThreadPool pool, Floats a, Floats b, Floats grad, Result da, Result db) {
  ForParts(pool, a.element_count(), [&](int64_t begin, int64_t count) {
    Elementwise<3, 2>(count, {a.typed_data() + begin, b.typed_data() + begin, grad.typed_data() + begin},
                      {da->typed_data() + begin, db->typed_data() + begin},
                      [](Vector* in, Vector* out) { GatedBackward(in[0], in[1], in[2], out[0], out[1]); });
  });
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    SlicediceGated, GatedOf,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Ret<Floats>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    SlicediceGatedBackward, GradientsOfGated,
    ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Ret<Floats>().Ret<Floats>());

}  // namespace slicedice
