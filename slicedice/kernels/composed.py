"""The expert FFN out of grouped matmuls, for implementations that have no kernel of their own for it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from slicedice.kernels.groups import Groups


def ffn(gmm: Callable[..., Array], rows: Array, gate: Array, up: Array, down: Array, groups: Groups):
    """`Implementation.ffn` by `gmm`; saves the products with gate and up, those of `hidden`."""
    saved = hidden(gmm, rows, gate, up, down, groups)
    return gmm(swiglu(*saved), down, groups, transpose_rhs=False, dtype=rows.dtype), saved


def ffn_backward(
    implementation: Any, rows: Array, gate: Array, up: Array, down: Array, groups: Groups, saved: Any, grad: Array
):
    """`Implementation.ffn_backward` by an implementation's `gmm` and `tgmm`."""

    def product(lhs, rhs, dtype):
        return implementation.gmm(lhs, rhs, groups, transpose_rhs=True, dtype=dtype)

    values, pull = jax.vjp(swiglu, *saved)
    dgate, dup = pull(product(grad, down, values.dtype))
    # In float32, since two gradients add up.
    drows = product(dgate, gate, jnp.float32) + product(dup, up, jnp.float32)
    outer = ((rows, dgate, gate), (rows, dup, up), (values, grad, down))
    return drows.astype(rows.dtype), *(implementation.tgmm(a, b, groups, dtype=w.dtype) for a, b, w in outer)


def gradients(implementation: Any, rows: Array, gate: Array, up: Array, down: Array, groups: Groups, grad: Array):
    """`ffn_backward` where nothing has been saved."""
    saved = hidden(implementation.gmm, rows, gate, up, down, groups)
    return ffn_backward(implementation, rows, gate, up, down, groups, saved, grad)


def hidden(gmm: Callable[..., Array], rows: Array, gate: Array, up: Array, down: Array, groups: Groups):
    """The products with gate and up, [M, F] each: bfloat16 if all operands are, else float32."""
    dtype = jnp.bfloat16 if all(x.dtype == jnp.bfloat16 for x in (rows, gate, up, down)) else jnp.float32
    return tuple(gmm(rows, w, groups, transpose_rhs=False, dtype=dtype) for w in (gate, up))


def swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) * up, computed in float32."""
    value = jax.nn.silu(gate.astype(jnp.float32)) * up.astype(jnp.float32)
    return value.astype(gate.dtype)
