"""Multi-head causal attention with RoPE and QK-norm over the full width, without biases."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from slicedice.kernels import is_native
from slicedice.kernels.platform import platform
from slicedice.model.native_attention import native_attention
from slicedice.model.splash import MIXED, fits, splash
from slicedice.moe.experts import Initializer, project, weight
from slicedice.parallel.gathering import gathered

ROPE_THETA = 500_000.0
NORM_EPS = 1e-6


class RMSNorm(nnx.Module):
    """RMSNorm with a gain (arXiv 1910.07467): computed in float32, result in the dtype of its input."""

    def __init__(self, d_model: int):
        self.scale = nnx.Param(jnp.ones(d_model), axes=(("gain", d_model),))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Normalises the last axis."""
        wide = x.astype(jnp.float32)
        normal = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + NORM_EPS)
        return (normal * gathered(self.scale, jnp.float32)).astype(x.dtype)


def rope(x: Float[Array, "B S H C"]) -> Float[Array, "B S H C"]:
    """Rotates the two halves of each head by position * theta^(-2i/C) (RoFormer, arXiv 2104.09864).

    As a sum with the halves swapped: its gradient is one too, and on CPU a sixth of that of parting and joining.
    """
    half = x.shape[-1] // 2
    frequency = ROPE_THETA ** (-jnp.arange(half) / half)
    angle = jnp.arange(x.shape[1])[:, None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    cos, sin = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
    wide = x.astype(jnp.float32)
    return (wide * cos + jnp.roll(wide, half, axis=-1) * sin).astype(x.dtype)


def causal_mix(
    query: Float[Array, "B S H C"], key: Float[Array, "B S H C"], value: Float[Array, "B S H C"]
) -> Float[Array, "B S H C"]:
    """Softmax attention over positions up to one's own, scores and sums in float32.

    On TPU and CPU it is a kernel that holds no scores in memory; on a CPU without a C++ compiler it is written out, and
    normalised after the product with values, because forward and backward pass then take about half the time of JAX's
    own (`benchmarks/attention.py`). What comes of it has the name that `jax.checkpoint` keeps.
    """
    where = platform()
    if where == "tpu" and fits(query.shape[1]):
        return splash(query, key, value)
    if where != "cpu":
        return checkpoint_name(jax.nn.dot_product_attention(query, key, value, is_causal=True), MIXED)
    if is_native():
        return native_attention(query, key, value)
    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    scores = jnp.einsum("bhqc,bhkc->bhqk", query, key, preferred_element_type=jnp.float32)
    past = jnp.tri(query.shape[2], dtype=bool)
    scores = jnp.where(past, scores / query.shape[3] ** 0.5, -jnp.inf)
    shares = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    mixed = jnp.einsum("bhqk,bhkc->bhqc", shares.astype(value.dtype), value, preferred_element_type=jnp.float32)
    mixed = (mixed / shares.sum(-1, keepdims=True)).astype(value.dtype).swapaxes(1, 2)
    return checkpoint_name(mixed, MIXED)


class Attention(nnx.Module):
    """[B, S, D] -> [B, S, D], each position reading itself and what came before."""

    def __init__(self, d_model: int, heads: int, *, init: Initializer, rngs: nnx.Rngs):
        self.heads = heads
        self.query, self.key, self.value, self.out = (
            weight(init, rngs.params(), d_model=d_model, heads=d_model) for _ in range(4)
        )
        self.query_norm, self.key_norm = RMSNorm(d_model), RMSNorm(d_model)

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Attends causally, in the dtype of `x`."""

        def heads(y):
            return y.reshape(*x.shape[:2], self.heads, -1)

        query, key, value, out = (gathered(w, x.dtype) for w in (self.query, self.key, self.value, self.out))
        query = rope(heads(self.query_norm(project(x, query))))
        key = rope(heads(self.key_norm(project(x, key))))
        value = heads(project(x, value))
        return project(causal_mix(query, key, value).reshape(x.shape), out)
