"""Grouped matmul as a plain loop in NumPy and float64: what every implementation is compared with."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Rows = Float[np.ndarray, "M _"]


class Gradients(NamedTuple):
    """A product of every group's rows with its matrix, and the gradients by both: [M, N], [M, K], [G, K, N]."""

    out: np.ndarray
    dlhs: np.ndarray
    drhs: np.ndarray


class FFNGradients(NamedTuple):
    """An expert FFN's output and the gradients by its inputs: [M, D] twice, [E, D, F] twice, [E, F, D]."""

    out: np.ndarray
    drows: np.ndarray
    dgate: np.ndarray
    dup: np.ndarray
    ddown: np.ndarray


def grouped_matmul(lhs, rhs, group_sizes: Int[np.ndarray, " G"], grad) -> Gradients:
    """`lhs` [M, K] times `rhs` [G, K, N], and the gradients for the cotangent `grad` [M, N]."""
    lhs, rhs, grad = (np.asarray(x, np.float64) for x in (lhs, rhs, grad))
    result = Gradients(np.zeros_like(grad), np.zeros_like(lhs), np.zeros_like(rhs))
    for g, rows in enumerate(slices(group_sizes)):
        result.out[rows] = lhs[rows] @ rhs[g]
        result.dlhs[rows] = grad[rows] @ rhs[g].T
        result.drhs[g] = lhs[rows].T @ grad[rows]
    return result


def expert_ffn(rows, gate, up, down, group_sizes: Int[np.ndarray, " E"], grad) -> FFNGradients:
    """down(silu(gate(x)) * up(x)) of rows [M, D], and the gradients for the cotangent `grad` [M, D]."""
    rows, gate, up, down, grad = (np.asarray(x, np.float64) for x in (rows, gate, up, down, grad))
    result = FFNGradients(*map(np.zeros_like, (rows, rows, gate, up, down)))
    for e, part in enumerate(slices(group_sizes)):
        x, dy = rows[part], grad[part]
        a, b = x @ gate[e], x @ up[e]
        sigmoid = 1 / (1 + np.exp(-a))
        hidden = a * sigmoid * b
        dhidden = dy @ down[e].T
        da = dhidden * b * sigmoid * (1 + a * (1 - sigmoid))
        db = dhidden * a * sigmoid
        result.out[part] = hidden @ down[e]
        result.drows[part] = da @ gate[e].T + db @ up[e].T
        result.dgate[e], result.dup[e], result.ddown[e] = x.T @ da, x.T @ db, hidden.T @ dy
    return result


def slices(group_sizes: Int[np.ndarray, " G"]) -> list[slice]:
    """The rows of each group."""
    ends = np.cumsum(group_sizes)
    return [slice(int(end - size), int(end)) for end, size in zip(ends, group_sizes, strict=True)]
