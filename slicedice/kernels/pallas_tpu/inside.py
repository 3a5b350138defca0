"""What the kernels of this package say in the same words: products in pieces, sums, and masks."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from slicedice.kernels.pallas_tpu import tiles

WHOLE = np.int32(0)
"""The block of an axis that is not cut: Python's 0 has 64 bits under `jax_enable_x64`, and Mosaic takes 32."""


def dot(x: Any, y: Any, x_axis: int, y_axis: int, dtype: DTypeLike) -> Any:
    """The product of two matrices over an axis of each, multiplied in `dtype`, summed in float32."""
    if (x_axis, y_axis, y.shape[0]) == (1, 1, 1):  # With a single vector: Pallas trips over bfloat16.
        dtype = jnp.float32
    exact = jnp.dtype(dtype) == jnp.float32
    return jax.lax.dot_general(
        x.astype(dtype),
        y.astype(dtype),
        (((x_axis,), (y_axis,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def for_each_piece(
    rows: int,
    columns: int,
    piece: tuple[int, int],
    body: Callable[[Any, Any, tuple[int, int]], None],
    bounds: tuple[Any, Any] | None = None,
):
    """Calls `body` with the rows, the columns and the shape of every piece of a product of this shape.

    With `bounds`, only pieces that hold some of these rows: a visit costs what its group's rows cost, not its tile's.
    It loops where it can: were the pieces written out, the compiler would hold values of several at once, and spill.
    """

    def column(across: Any, wide: int):
        for_each_part(rows, piece[0], lambda down, tall: body(down, across, (tall, wide)), bounds)

    for_each_part(columns, piece[1], column)


def for_each_part(length: int, part: int, body: Callable[[Any, int], None], bounds: tuple[Any, Any] | None = None):
    """Calls `body` with the slice and the size of every part of an axis, whole ones in a loop, then what is left.

    With `bounds`, only for parts that hold some of these; parts are then a power of two, and so is the length.
    """
    whole, left = divmod(length, part)

    def one(i: Any) -> None:
        body(pl.ds(pl.multiple_of(i * part, part), part), part)

    if whole == 1:
        body(pl.ds(0, part), part)
    elif whole and bounds is not None:
        shift = part.bit_length() - 1
        first, end = bounds[0] >> shift, (bounds[1] + part - 1) >> shift
        jax.lax.fori_loop(first, end, lambda i, _: one(i), None)
    elif whole:
        # What `fori_loop` makes of Python's integers counts in 64 bits under `jax_enable_x64`; Mosaic counts in 32.
        jax.lax.scan(lambda i, _: (i + 1, one(i)), np.int32(0), length=whole)
    if left:
        body(pl.ds(whole * part, left), left)


def accumulators(shape: tuple[int, int], dtype: DTypeLike) -> list[Any]:
    """Scratch to sum a result of this dtype in: none where the result itself is float32."""
    return [] if jnp.dtype(dtype) == jnp.float32 else [pltpu.VMEM(shape, jnp.float32)]


def add(out: Any, scratch: Sequence[Any], rows: Any, columns: Any, first: Any, product: Any):
    """Adds a product to what is in its place, or puts it there if it is the first."""
    total = scratch[0] if scratch else out
    product += jnp.where(first, 0.0, total[rows, columns])
    total[rows, columns] = product
    if scratch:
        out[rows, columns] = product.astype(out.dtype)


def select_into(out: Any, source: Any, low: Any, high: Any, *, transpose: bool = False):
    """Copies the rows [low, high) of a block, with zeros for its other rows; or as columns, with `transpose`.

    It is done once before a product over rows, whose pieces would otherwise do the same again and again.
    """

    def part(rows: Any, columns: Any, shape: tuple[int, int]):
        chosen = select(row_mask(shape, low - rows.start, high - rows.start), source[rows, columns]).astype(out.dtype)
        if transpose:
            out[columns, rows] = chosen.T
        else:
            out[rows, columns] = chosen

    for_each_piece(source.shape[0], source.shape[1], (tiles.LANES, tiles.LANES), part)


def row_mask(shape: tuple[int, int], low: Any, high: Any) -> Any:
    """Whether each row of a block is one of [low, high)."""
    row = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    return (row - low).astype(jnp.uint32) < jnp.maximum(high - low, 0).astype(jnp.uint32)


def select(mask: Any, x: Any) -> Any:
    """`x` where the mask holds, else zeros. It selects: NaN times zero would be NaN."""
    return jnp.where(mask, x, jnp.zeros((), x.dtype))
