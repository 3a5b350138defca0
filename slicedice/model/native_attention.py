"""Causal attention on CPU by the C++ kernel of `kernels.native`, which keeps scores in a core's cache."""

import jax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from slicedice.kernels import native
from slicedice.model.splash import MIXED


@jax.custom_vjp
def native_attention(
    query: Float[Array, "B S H C"], key: Float[Array, "B S H C"], value: Float[Array, "B S H C"]
) -> Float[Array, "B S H C"]:
    """Softmax attention over positions up to one's own, computed in float32, wherever `native.available()`."""
    return _forward(query, key, value)[0]


def _forward(query, key, value):
    out, log_sums = (checkpoint_name(x, MIXED) for x in native.attend(query, key, value))
    return out, (query, key, value, out, log_sums)


def _backward(residuals, grad):
    query, key, value, out, log_sums = residuals
    return tuple(native.attend_backward(query, key, value, out, log_sums, grad))


native_attention.defvjp(_forward, _backward)
