"""Grouped matmul as a plain loop in NumPy and float64: what every implementation is compared with."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Gradients(NamedTuple):
    """A product of every group's rows with its matrix, and the gradients by both: [M, N], [M, K], [G, K, N]."""

    out: Any
    dlhs: Any
    drhs: Any


class FFNGradients(NamedTuple):
    """An expert FFN's output and the gradients by its inputs: [M, D] twice, [E, D, F] twice, [E, F, D]."""

    out: Any
    drows: Any
    dgate: Any
    dup: Any
    ddown: Any


def grouped_matmul(lhs: ArrayLike, rhs: ArrayLike, group_sizes: ArrayLike, grad: ArrayLike) -> Gradients:
    """`lhs` [M, K] times `rhs` [G, K, N], and the gradients for the cotangent `grad` [M, N]."""
    x, w, dy = (np.asarray(array, np.float64) for array in (lhs, rhs, grad))
    result = Gradients(*map(np.zeros_like, (dy, x, w)))
    for g, rows in enumerate(slices(group_sizes)):
        result.out[rows] = x[rows] @ w[g]
        result.dlhs[rows] = dy[rows] @ w[g].T
        result.drhs[g] = x[rows].T @ dy[rows]
    return result


def expert_ffn(
    rows: ArrayLike, gate: ArrayLike, up: ArrayLike, down: ArrayLike, group_sizes: ArrayLike, grad: ArrayLike
) -> FFNGradients:
    """down(silu(gate(x)) * up(x)) of rows [M, D], and the gradients for the cotangent `grad` [M, D]."""
    inputs, wg, wu, wd, grads = (np.asarray(array, np.float64) for array in (rows, gate, up, down, grad))
    result = FFNGradients(*map(np.zeros_like, (inputs, inputs, wg, wu, wd)))
    for e, part in enumerate(slices(group_sizes)):
        x, dy = inputs[part], grads[part]
        a, b = x @ wg[e], x @ wu[e]
        sigmoid = 0.5 * (1 + np.tanh(a / 2))  # exp(-a) would overflow
        hidden = a * sigmoid * b
        dhidden = dy @ wd[e].T
        da = dhidden * b * sigmoid * (1 + a * (1 - sigmoid))
        db = dhidden * a * sigmoid
        result.out[part] = hidden @ wd[e]
        result.drows[part] = da @ wg[e].T + db @ wu[e].T
        result.dgate[e], result.dup[e], result.ddown[e] = x.T @ da, x.T @ db, hidden.T @ dy
    return result


def slices(group_sizes: ArrayLike) -> list[slice]:
    """The rows of each group."""
    sizes = np.asarray(group_sizes)
    return [slice(int(end - size), int(end)) for end, size in zip(np.cumsum(sizes), sizes, strict=True)]
