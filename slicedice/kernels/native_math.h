// Elementary functions of vectors.

#ifndef SLICEDICE_NATIVE_MATH_H_
#define SLICEDICE_NATIVE_MATH_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "native_product.h"

namespace slicedice {

// e to the x, to a rounding or two: 2^round(x / ln 2) times a polynomial in what is left (Cephes' expf).
inline Vector Exp(Vector x) {
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

// Each lane's square root: one instruction, as nobody asks for errno.
inline Vector Sqrt(Vector x) {
  for (int lane = 0; lane < kLanes; ++lane) x[lane] = std::sqrt(x[lane]);
  return x;
}

// The sum of products.
inline float Dot(const float* a, const float* b, int64_t count) {
  Vector sum = {};
  const int64_t whole = count / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes)
    sum += *reinterpret_cast<const Vector*>(a + i) * *reinterpret_cast<const Vector*>(b + i);
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += sum[lane];
  for (int64_t i = whole; i < count; ++i) total += a[i] * b[i];
  return total;
}

// SwiGLU's values of its two products: silu(a) * b.
inline Vector Gated(Vector a, Vector b) { return a / (1.0f + Exp(-a)) * b; }

// The gradients of a and b, given that of the value, which is returned.
inline Vector GatedBackward(Vector a, Vector b, Vector grad, Vector& da, Vector& db) {
  const Vector sigmoid = 1.0f / (1.0f + Exp(-a)), silu = a * sigmoid;
  da = grad * b * (sigmoid + silu * (1.0f - sigmoid));
  db = grad * silu;
  return silu * b;
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

}  // namespace slicedice

#endif
