"""Experts on CPU by kernels in C++: a layer's from tokens to tokens, with no rows as wide as the model in memory."""

import jax
from jaxtyping import Array, Float

from slicedice.kernels import native
from slicedice.moe.dispatch import Plan


@jax.custom_vjp
def native_experts(
    x: Float[Array, "T D"],
    weights: Float[Array, "T K"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    down: Float[Array, "E F D"],
    plan: Plan,
) -> Float[Array, "T D"]:
    """`dispatch`, SwiGLU experts and `combine` at once; computed in float32."""
    return _forward(x, weights, gate, up, down, plan)[0]


def _forward(x, weights, gate, up, down, plan):
    out, *saved = native.layer(x, weights, plan.assignment_of_row, plan.group_sizes, gate, up, down)
    return out.astype(x.dtype), (x, weights, gate, up, down, plan, saved)


def _backward(residuals, grad):
    x, weights, gate, up, down, plan, saved = residuals
    dx, dweights, *matrices = native.layer_backward(
        x, weights, plan.assignment_of_row, plan.group_sizes, gate, up, down, saved, grad
    )
    dgate, dup, ddown = (d.astype(w.dtype) for d, w in zip(matrices, (gate, up, down), strict=True))
    return dx.astype(x.dtype), dweights.astype(weights.dtype), dgate, dup, ddown, None


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
