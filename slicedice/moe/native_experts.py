"""Experts on CPU by kernels in C++: a layer's from tokens to tokens, with no rows as wide as the model in memory."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slicedice.kernels import native
from slicedice.moe.dispatch import Plan


class Stack(NamedTuple):
    """All layers' matrices, and the index of the layer whose are used: nobody has to cut them out for a kernel."""

    gate: Float[Array, "L E D F"]
    up: Float[Array, "L E D F"]
    down: Float[Array, "L E F D"]
    index: Int[Array, ""]


@jax.custom_vjp
def native_experts(
    x: Float[Array, "T D"],
    weights: Float[Array, "T K"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    down: Float[Array, "E F D"],
    plan: Plan,
    stack: Stack | None = None,
) -> Float[Array, "T D"]:
    """`dispatch`, SwiGLU experts and `combine` at once; computed in float32.

    With a `stack`, which holds the same matrices in float32, they are read there; gradients are still those of `gate`,
    `up` and `down`.
    """
    return _forward(x, weights, gate, up, down, plan, stack)[0]


def _forward(x, weights, gate, up, down, plan, stack=None):
    dtypes = tuple(jnp.zeros(0, w.dtype) for w in (gate, up, down))  # only arrays are kept for the backward pass
    stack = stack or Stack(gate[None], up[None], down[None], jnp.int32(0))
    out, *saved = native.layer(x, weights, plan.assignment_of_row, plan.group_sizes, *stack)
    return out.astype(x.dtype), (x, weights, plan, stack, saved, dtypes)


def _backward(residuals, grad):
    x, weights, plan, stack, saved, dtypes = residuals
    rows = plan.assignment_of_row, plan.group_sizes
    dx, dweights, *matrices = native.layer_backward(x, weights, *rows, *stack, saved=saved, grad=grad)
    dgate, dup, ddown = (d.astype(like.dtype) for d, like in zip(matrices, dtypes, strict=True))
    return dx.astype(x.dtype), dweights.astype(weights.dtype), dgate, dup, ddown, None, None


native_experts.defvjp(_forward, _backward)


@jax.custom_vjp
def native_gated(a: Float[Array, "*B F"], b: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
    """silu(a) * b, computed in float32; only `a` and `b` are kept for the backward pass."""
    return native.gated(a, b)


def _gated_forward(a, b):
    return native.gated(a, b), (a, b)


def _gated_backward(residuals, grad):
    a, b = residuals
    return native.gated_backward(a, b, grad)


native_gated.defvjp(_gated_forward, _gated_backward)
