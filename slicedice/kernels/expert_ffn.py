"""The experts' SwiGLU feed-forward networks as one operation over rows sorted by expert.

Fine experts spend their time moving bytes: written out as three products, their hidden values, [M, 2F], would
go to memory and come back. As one operation an implementation may keep them on the chip.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from slicedice.kernels import composed
from slicedice.kernels.grouped_matmul import Products, as_array, checked, folded
from slicedice.kernels.groups import Groups
from slicedice.kernels.implementations import choose, load

MATRICES = 1, 2, 3
"""The places of gate, up and down among what an implementation's functions take."""


def expert_ffn(
    rows: Float[Array, "M D"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    down: Float[Array, "E F D"],
    group_sizes: Int[Array | np.ndarray, " E"] | Sequence[int],
    *,
    implementation: str = "",
    alignment: int = 1,
) -> Float[Array, "M D"]:
    """down(silu(gate(x)) * up(x)) of each row x with the matrices of its expert (SwiGLU, arXiv 2002.05202).

    The contract is that of `grouped_matmul`: rows past `sum(group_sizes)` may hold anything and come out as zeros
    with zero gradient; experts without rows get zero gradients. Derivatives of order two and more go through its
    products one by one, as the first one's do under a `jax.vmap` that maps no matrices.

    Args:
      rows: sorted by expert, [M, D], bfloat16 or float32, as all operands.
      gate: [E, D, F].
      up: [E, D, F].
      down: [E, F, D].
      group_sizes: rows of each expert, [E], of JAX, NumPy or a list.
      implementation: a name from `IMPLEMENTATIONS`; "" chooses by platform.
      alignment: a promise that M and every group size are multiples of this.

    Returns:
      [M, D], in the dtype of `rows`.

    Raises:
      ValueError: as `grouped_matmul`.
    """
    sizes = as_array(group_sizes)
    e, d, f = gate.shape if gate.ndim == 3 else (-1,) * 3
    if (rows.ndim, *rows.shape[1:], up.shape, down.shape, sizes.shape) != (2, d, (e, d, f), (e, f, d), (e,)):
        raise ValueError(
            f"rows {rows.shape}, gate {gate.shape}, up {up.shape}, down {down.shape} and group_sizes "
            f"{sizes.shape} do not fit [M, D], [E, D, F], [E, D, F], [E, F, D], [E]"
        )
    operands = checked(sizes, alignment, rows=rows, gate=gate, up=up, down=down)
    result: Any = _ffn(choose(implementation), *operands)
    return result[0]


# `_ffn` and its gradient are a function each with a gradient of its own, for derivatives of higher order. What the
# one saves for the other is given none: it depends on rows and matrices, and is counted as part of theirs.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ffn(name: str, rows: Array, gate: Array, up: Array, down: Array, groups: Groups) -> tuple[Array, Any]:
    implementation = load(name)
    rows = groups.select(rows) if implementation.NEEDS_ZEROS else rows
    return folded(implementation.ffn, MATRICES)(rows, gate, up, down, groups)


def _ffn_forward(name: str, rows: Array, gate: Array, up: Array, down: Array, groups: Groups):
    result: Any = _ffn(name, rows, gate, up, down, groups)
    return result, (rows, gate, up, down, groups, result[1])


def _ffn_backward(name: str, residuals: Any, grads: tuple[Array, Any]):
    gradients: Any = _gradients(name, *residuals, grads[0])
    return *gradients, None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gradients(
    name: str, rows: Array, gate: Array, up: Array, down: Array, groups: Groups, saved: Any, grad: Array
) -> tuple[Array, Array, Array, Array]:
    implementation = load(name)
    if implementation.NEEDS_ZEROS:
        rows, grad = groups.select(rows), groups.select(grad)

    def shared(rows, gate, up, down, groups, _, grad):
        return composed.gradients(Products(name), rows, gate, up, down, groups, grad)

    return folded(implementation.ffn_backward, MATRICES, shared)(rows, gate, up, down, groups, saved, grad)


def _gradients_forward(name: str, rows, gate, up, down, groups: Groups, saved: Any, grad: Array):
    return _gradients(name, rows, gate, up, down, groups, saved, grad), (rows, gate, up, down, groups, grad)


def _gradients_backward(name: str, residuals: Any, grads: tuple[Array, Array, Array, Array]):
    rows, gate, up, down, groups, grad = residuals

    def gradients(rows, gate, up, down, grad):
        return composed.gradients(Products(name), rows, gate, up, down, groups, grad)

    *by_operand, by_grad = jax.vjp(gradients, rows, gate, up, down, grad)[1](grads)
    return *by_operand, None, None, by_grad


_ffn.defvjp(_ffn_forward, _ffn_backward)
_gradients.defvjp(_gradients_forward, _gradients_backward)
