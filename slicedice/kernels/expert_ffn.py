"""The experts' SwiGLU feed-forward networks as one operation over rows sorted by expert.

Fine experts spend their time moving bytes: written out as three products, their hidden values, [M, 2F], would
go to memory and come back. As one operation an implementation may keep them on the chip.
"""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from slicedice.kernels.grouped_matmul import checked_groups, folded
from slicedice.kernels.groups import Groups
from slicedice.kernels.implementations import choose, load
from slicedice.kernels.varying import vary_as


def expert_ffn(
    rows: Float[Array, "M D"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    down: Float[Array, "E F D"],
    group_sizes: Int[Array, " E"],
    *,
    implementation: str = "",
    alignment: int = 1,
) -> Float[Array, "M D"]:
    """down(silu(gate(x)) * up(x)) of each row x with the matrices of its expert (SwiGLU, arXiv 2002.05202).

    The contract is that of `grouped_matmul`: rows past `sum(group_sizes)` may hold anything and come out as zeros
    with zero gradient; experts without rows get zero gradients.

    Args:
      rows: sorted by expert, [M, D].
      gate: [E, D, F].
      up: [E, D, F].
      down: [E, F, D].
      group_sizes: rows of each expert, [E].
      implementation: a name from `IMPLEMENTATIONS`; "" chooses by platform.
      alignment: a promise that M and every group size are multiples of this.

    Returns:
      [M, D], in the dtype of `rows`.

    Raises:
      ValueError: as `grouped_matmul`.
    """
    shape = (gate.shape[0], rows.shape[-1], gate.shape[-1])
    if (
        group_sizes.shape != shape[:1]
        or rows.ndim != 2
        or gate.shape != shape
        or up.shape != shape
        or down.shape != (shape[0], shape[2], shape[1])
    ):
        raise ValueError(
            f"rows {rows.shape}, gate {gate.shape}, up {up.shape}, down {down.shape} and group_sizes "
            f"{group_sizes.shape} do not fit [M, D], [E, D, F], [E, D, F], [E, F, D], [E]"
        )
    arrays = rows, gate, up, down, group_sizes
    rows, gate, up, down, group_sizes = (vary_as(x, *arrays) for x in arrays)
    groups = checked_groups(group_sizes, rows.shape[0], alignment)
    return _ffn(choose(implementation), rows, gate, up, down, groups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ffn(implementation: str, rows: Array, gate: Array, up: Array, down: Array, groups: Groups) -> Array:
    return _forward(implementation, rows, gate, up, down, groups)[0]


def _forward(name: str, rows: Array, gate: Array, up: Array, down: Array, groups: Groups):
    implementation = load(name)
    rows = groups.select(rows) if implementation.NEEDS_ZEROS else rows
    out, saved = folded(implementation.ffn)(rows, gate, up, down, groups)
    return out, (rows, gate, up, down, groups, saved)


def _backward(name: str, residuals: Any, grad: Array):
    implementation, groups = load(name), residuals[4]
    grad = groups.select(grad) if implementation.NEEDS_ZEROS else grad
    return *folded(implementation.ffn_backward)(*residuals, grad), None


_ffn.defvjp(_forward, _backward)
