"""Grouped products and the expert network on Hopper GPUs: Pallas kernels compiled by Mosaic GPU.

bfloat16 goes through matrix instructions (`wgmma`), fed by the copy engine (TMA). These round float32 to ten bits,
so anything else goes to `slicedice.kernels.blocks`, with a warning in the log.

It is interpreted on a CPU, with races looked for, and compiled without a device to machine code for compute capability
9.0, whose matrix and copy instructions, registers and spills were read. What neither can show is how a device takes
copies that pass an array's end: on an H200 one went wrong (docs/kernels.md). So a process that would use the kernels by
default first has them checked on its own device; see `available`. No size in `tiles` has been tuned.
"""

import functools
import logging
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from slicedice.kernels import blocks
from slicedice.kernels.groups import Groups
from slicedice.kernels.pallas_gpu import tiles
from slicedice.kernels.pallas_gpu.check import available
from slicedice.kernels.pallas_gpu.fused import fused
from slicedice.kernels.pallas_gpu.outer import outer
from slicedice.kernels.pallas_gpu.products import Product, products

__all__ = ["NEEDS_ZEROS", "available", "ffn", "ffn_backward", "gmm", "row_alignment", "supports", "tgmm"]

log = logging.getLogger(__name__)

NEEDS_ZEROS = False
"""Rows of no group are never seen."""

ALIGNED_ROWS = 8
"""At such multiples rows are stored in fewer pieces, and results of any width without a copy."""


def supports(*arrays: Array) -> bool:
    """Whether the kernels take these: all bfloat16. Axes may have any size; `tiles` says which are padded, to what."""
    return all(x.dtype == jnp.bfloat16 for x in arrays)


def row_alignment(rows: int, groups: int) -> int:
    """The multiple of rows at which groups had best begin: 8, unless the filling would outweigh what it saves."""
    return ALIGNED_ROWS if rows >= 4 * ALIGNED_ROWS * groups else 1


def gmm(
    lhs: Float[Array, "M K"], rhs: Float[Array, "G ..."], groups: Groups, *, transpose_rhs: bool, dtype: DTypeLike
) -> Float[Array, "M N"]:
    """Multiplies each row with the matrix of its group; rows of no group come out as zeros, whatever they hold.

    Args:
      lhs: rows, [M, K].
      rhs: a matrix for each group, [G, K, N], or [G, N, K] with `transpose_rhs`.
      groups: which rows belong to which.
      transpose_rhs: whether `rhs` comes with its last two axes swapped.
      dtype: of the result; products are summed in float32.

    Returns:
      [M, N].
    """
    m, n = lhs.shape[0], rhs.shape[1 if transpose_rhs else 2]
    if not supports(lhs, rhs):
        _say_other("gmm", str(lhs.dtype), str(rhs.dtype))
        return blocks.gmm(groups.select(lhs), rhs, groups, transpose_rhs=transpose_rhs, dtype=jnp.dtype(dtype))
    if 0 in (m, n, *lhs.shape, *rhs.shape):
        return jnp.zeros((m, n), dtype)
    k = lhs.shape[1]
    if transpose_rhs:
        (wide,) = tiles.padded_widths(k)
        matrices = _pad(rhs, tiles.padded_rows(n), wide)
    else:
        wide, columns = tiles.padded_widths(k, n)
        matrices = _pad(rhs, tiles.padded_rows(k), columns)
    term = Product(0, 0, transpose_rhs, 0)
    (out,) = products([_pad(lhs, wide)], [matrices], [term], lambda x: [x], groups, _stored(dtype), "gmm")
    return out[:, :n].astype(dtype)


def tgmm(
    lhs: Float[Array, "M K"], rhs: Float[Array, "M N"], groups: Groups, *, dtype: DTypeLike
) -> Float[Array, "G K N"]:
    """Sums the outer products of the rows of each group; rows of no group are never seen, NaN included.

    Args:
      lhs: rows, [M, K].
      rhs: rows, [M, N].
      groups: which rows belong to which.
      dtype: of the result; products are summed in float32.

    Returns:
      [G, K, N], zeros for an empty group.
    """
    (m, k), n, number = lhs.shape, rhs.shape[1], groups.sizes.shape[0]
    if not supports(lhs, rhs):
        _say_other("tgmm", str(lhs.dtype), str(rhs.dtype))
        return blocks.tgmm(groups.select(lhs), groups.select(rhs), groups, dtype=jnp.dtype(dtype))
    if 0 in (m, k, n, number):
        return jnp.zeros((number, k, n), dtype)
    wide, columns = tiles.padded_widths(k, n)
    (out,) = outer(_pad(lhs, wide), [_pad(rhs, columns)], groups, _stored(dtype), "tgmm")
    return out[:, :k, :n].astype(dtype)


def ffn(
    rows: Float[Array, "M D"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    down: Float[Array, "E F D"],
    groups: Groups,
) -> tuple[Float[Array, "M D"], tuple[Array, ...]]:
    """Computes down(silu(gate(x)) * up(x)) of each row x with the matrices of its expert.

    One kernel up to a hidden width of 128, so that hidden values stay on the chip; above, one for the hidden values
    and one for down.

    Args:
      rows: [M, D].
      gate: [E, D, F].
      up: [E, D, F].
      down: [E, F, D].
      groups: which rows belong to which expert.

    Returns:
      [M, D], in the dtype of `rows`, and nothing saved: gradients compute the hidden values again.
    """
    if not supports(rows, gate, up, down):
        _say_other("expert network", *(str(x.dtype) for x in (rows, gate, up, down)))
        return blocks.ffn(groups.select(rows), gate, up, down, groups)
    if 0 in (*rows.shape, *gate.shape):
        return jnp.zeros_like(rows), ()
    (wide,), gate, up, down = _padded([rows], gate, up, down)
    if gate.shape[2] <= tiles.WIDEST_FUSED:
        out = fused(wide, gate, up, down, groups, _swiglu)
    else:
        into = [Product(0, 0, False, 0), Product(0, 1, False, 1)]
        name = "expert_hidden"
        hidden = products([wide], [gate, up], into, lambda g, u: [_swiglu(g, u)], groups, rows.dtype, name)
        (out,) = products(hidden, [down], [Product(0, 0, False, 0)], lambda x: [x], groups, rows.dtype, "gmm")
    return out[:, : rows.shape[1]], ()


def ffn_backward(
    rows: Float[Array, "M D"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    down: Float[Array, "E F D"],
    groups: Groups,
    saved: tuple[Array, ...],
    grad: Float[Array, "M D"],
) -> tuple[Float[Array, "M D"], Float[Array, "E D F"], Float[Array, "E D F"], Float[Array, "E F D"]]:
    """The gradients of `ffn`, in four kernels; hidden values are computed again, and summed up in float32.

    Args:
      rows: [M, D].
      gate: [E, D, F].
      up: [E, D, F].
      down: [E, F, D].
      groups: which rows belong to which expert.
      saved: what `ffn` saved.
      grad: of the result, [M, D].

    Returns:
      The gradients of rows, gate, up and down, each in the dtype of what it is the gradient of.
    """
    if not supports(rows, gate, up, down, grad):
        return blocks.ffn_backward(groups.select(rows), gate, up, down, groups, saved, groups.select(grad))
    if 0 in (*rows.shape, *gate.shape):
        return jnp.zeros_like(rows), jnp.zeros_like(gate), jnp.zeros_like(up), jnp.zeros_like(down)
    d, f = gate.shape[1:]
    (x, dy), gate, up, down = _padded([rows, grad], gate, up, down)
    into = [Product(0, 0, False, 0), Product(0, 1, False, 1), Product(1, 2, True, 2)]
    name = "expert_hidden_gradients"
    hidden, dgate, dup = products(
        [x, dy], [gate, up, down], into, _swiglu_gradients, groups, rows.dtype, name, results=3
    )
    back = [Product(0, 0, True, 0), Product(1, 1, True, 0)]
    (drows,) = products([dgate, dup], [gate, up], back, lambda x: [x], groups, rows.dtype, "expert_row_gradients")
    dgates, dups = outer(x, [dgate, dup], groups, gate.dtype, "expert_gate_gradients")
    (ddowns,) = outer(hidden, [dy], groups, down.dtype, "expert_down_gradients")
    return drows[:, :d], dgates[:, :d, :f], dups[:, :d, :f], ddowns[:, :f, :d]


def _swiglu(gate: Array, up: Array) -> Array:
    return gate * jax.nn.sigmoid(gate) * up


def _swiglu_gradients(gate: Array, up: Array, dhidden: Array) -> tuple[Array, Array, Array]:
    """SwiGLU, and what its gradient makes of those of gate and up."""
    s = jax.nn.sigmoid(gate)
    silu = gate * s
    return silu * up, dhidden * up * (s + silu * (1 - s)), dhidden * silu


def _padded(rows: Sequence[Array], gate: Array, up: Array, down: Array) -> tuple[list[Array], Array, Array, Array]:
    """Rows [M, D] and matrices of the expert network, as the kernels take them.

    What is padded is copied. Where matrices are cast to bfloat16 for the call, XLA pads them while it casts them.
    """
    d, f = gate.shape[1:]
    wide, hidden = tiles.padded_widths(d, f)
    gate, up = (_pad(w, tiles.padded_rows(d), hidden) for w in (gate, up))
    return [_pad(x, wide) for x in rows], gate, up, _pad(down, tiles.padded_rows(f), wide)


def _pad(x: Array, *sizes: int) -> Array:
    """Pads the last axes with zeros to these sizes."""
    leading = x.ndim - len(sizes)
    return jnp.pad(x, [(0, 0)] * leading + [(0, size - n) for size, n in zip(sizes, x.shape[leading:], strict=True)])


def _stored(dtype: DTypeLike) -> DTypeLike:
    """The dtype in which a kernel stores what is to be of `dtype`."""
    return dtype if jnp.dtype(dtype) == jnp.bfloat16 else jnp.float32


@functools.cache
def _say_other(name: str, *dtypes: str) -> None:
    log.warning("%s of %s: the Hopper kernels multiply bfloat16 only, blocks takes it", name, " x ".join(dtypes))
