"""RMSNorm, and the rotary embedding that follows it where queries and keys are made.

On CPU both are one kernel, where there is a C++ compiler: written out, forward and backward pass read the same megabyte
a dozen times.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from slicedice.kernels import is_native, native
from slicedice.parallel.gathering import gathered

ROPE_THETA = 500_000.0
NORM_EPS = 1e-6

Angles = tuple[Float[Array, "S C/2"], Float[Array, "S C/2"]]
"""Cosines and sines."""


class RMSNorm(nnx.Module):
    """RMSNorm with a gain (arXiv 1910.07467): computed in float32, result in the dtype of its input."""

    def __init__(self, d_model: int):
        self.scale = nnx.Param(jnp.ones(d_model), axes=(("gain", d_model),))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Normalises the last axis."""
        gain = gathered(self.scale, jnp.float32)
        if is_native():
            return _native(x, gain, angles(1, 0))
        wide = x.astype(jnp.float32)
        normal = wide * jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + NORM_EPS)
        return (normal * gain).astype(x.dtype)

    def rotated(self, x: Float[Array, "B S D"], heads: int) -> Float[Array, "B S H C"]:
        """Normalises the last axis, parts it into heads, and turns these by their position."""
        shape = *x.shape[:2], heads, x.shape[2] // heads
        if is_native():
            return _native(x, gathered(self.scale, jnp.float32), angles(x.shape[1], shape[3] // 2)).reshape(shape)
        return rope(self(x).reshape(shape))


def rope(x: Float[Array, "B S H C"]) -> Float[Array, "B S H C"]:
    """Rotates the two halves of each head by position * theta^(-2i/C) (RoFormer, arXiv 2104.09864).

    As a sum with the halves swapped: its gradient is one too, and on CPU a sixth of that of parting and joining.
    """
    half = x.shape[-1] // 2
    cos, sin = (turn[:, None] for turn in angles(x.shape[1], half))
    cos, sin = jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)
    wide = x.astype(jnp.float32)
    return (wide * cos + jnp.roll(wide, half, axis=-1) * sin).astype(x.dtype)


def angles(positions: int, half: int) -> Angles:
    """By which the pairs of a head of width 2 * half are turned at each position."""
    frequency = ROPE_THETA ** (-jnp.arange(half) / half)
    angle = jnp.arange(positions)[:, None] * frequency
    return jnp.cos(angle), jnp.sin(angle)


@jax.custom_vjp
def _native(x: Float[Array, "*B D"], gain: Float[Array, " D"], turns: Angles) -> Float[Array, "*B D"]:
    return native.norm(x, gain, turns, NORM_EPS)


def _forward(x: Array, gain: Array, turns: Angles):
    return native.norm(x, gain, turns, NORM_EPS), (x, gain, turns)


def _backward(residuals: tuple[Array, Array, Angles], grad: Array):
    x, gain, turns = residuals
    return *native.norm_backward(x, gain, turns, NORM_EPS, grad), jax.tree.map(jnp.zeros_like, turns)


_native.defvjp(_forward, _backward)
