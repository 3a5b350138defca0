"""Rows times the matrix of their group, as one kernel: several products at once, and what is made of their sums.

The gmm is one product; the hidden values of the expert network are two with SwiGLU over them; its gradients take
three, or two added up. Runs on Hopper; see the package for what has been run where.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike
from jaxtyping import Array

from slicedice.kernels.groups import Groups
from slicedice.kernels.pallas_gpu import inside, tiles
from slicedice.kernels.pallas_gpu.visits import PIECE, Visits, visits_of


class Product(NamedTuple):
    """One product of a kernel.

    Attributes:
      lhs: which array of rows, [M, K].
      rhs: which matrices, [G, K, N], or [G, N, K] if transposed.
      transposed: whether each matrix is multiplied transposed.
      sum: which of the sums it is added to.
    """

    lhs: int
    rhs: int
    transposed: bool
    sum: int


def products(
    lhs: Sequence[Array],
    rhs: Sequence[Array],
    terms: Sequence[Product],
    finish: Callable[..., Sequence[Array]],
    groups: Groups,
    dtype: DTypeLike,
    name: str,
    *,
    results: int = 1,
) -> Sequence[Array]:
    """Computes sums of products of each row with matrices of its group, and what `finish` makes of them.

    Args:
      lhs: rows, bfloat16, each [M, K]; K as `tiles.padded_widths` wants it together with the last axis of `rhs`.
      rhs: matrices, bfloat16, each [G, K, N] or [G, N, K]; the axis before the last as `tiles.padded_rows` wants it,
        so that K may be smaller than that of `lhs`.
      terms: the products.
      finish: takes the float32 sums, [64, columns] each, to as many results; zeros must become zeros.
      groups: which rows belong to which.
      dtype: of the results.
      name: of the kernel.
      results: how many `finish` makes.

    Returns:
      The results, each [M, N], zeros in rows of no group.
    """
    (m, k), n = lhs[0].shape, rhs[0].shape[1 if terms[0].transposed else 2]
    sums = 1 + max(term.sum for term in terms)
    number = groups.sizes.shape[0]
    tiling = tiles.products(m, number, n, lhs=len(lhs), rhs=len(rhs), sums=sums, out=dtype)
    length = max(tiles.round_up(m, PIECE), tiling.rows)
    lhs = [jnp.pad(x, ((0, length - m), (0, 0))) for x in lhs]
    visits = visits_of(groups, m, tiling.rows, length)
    column_tiles, steps = pl.cdiv(n, tiling.columns), pl.cdiv(k, tiles.STEP)
    transposed = [next(term.transposed for term in terms if term.rhs == i) for i in range(len(rhs))]
    consumers, stages, depth, columns = tiling.consumers, tiling.stages, tiles.STEP, tiling.columns
    alignment = inside.alignment(groups)
    width = inside.stored_width(n, alignment, dtype)

    def body(warpgroup: Any, block: Any, blocks: int, *refs: Any):
        visits, refs = Visits(*refs[: len(Visits._fields)]), refs[len(Visits._fields) :]
        lhs_ref, refs = refs[: len(lhs)], refs[len(lhs) :]
        rhs_ref, refs = refs[: len(rhs)], refs[len(rhs) :]
        out_ref, refs = refs[:results], refs[results:]
        lhs_ring, rhs_ring, staging, full, empty = refs
        mine = inside.share(visits.count[0] * column_tiles, block, blocks)

        def item(index: Any) -> tuple[Any, Any, Any]:
            """The visit, its first column, and how many steps it takes: none in a hole, whose sums stay zero."""
            at = block + index * blocks
            visit = jax.lax.div(at, jnp.int32(column_tiles))
            column = jax.lax.rem(at, jnp.int32(column_tiles)) * columns
            return visit, column, jnp.where(visits.group[visit] >= 0, steps, 0)

        @pl.when(warpgroup == consumers)
        def _produce():
            def fetch_item(index: Any, step: Any):
                visit, column, count = item(index)
                group, first = visits.group[visit], visits.first[visit]

                def fetch_step(i: Any, step: Any):
                    across, along = pl.ds(column, columns), pl.ds(i * depth, depth)
                    copies = [
                        (x.at[pl.ds(pl.multiple_of(first, PIECE), tiling.rows), along], ring)
                        for x, ring in zip(lhs_ref, lhs_ring, strict=True)
                    ]
                    for w, ring, turned in zip(rhs_ref, rhs_ring, transposed, strict=True):
                        copies.append((w.at[group, across, along] if turned else w.at[group, along, across], ring))
                    inside.fetch(step, stages, full, empty, copies)
                    return step + 1

                return jax.lax.fori_loop(0, count, fetch_step, step)

            inside.drain(jax.lax.fori_loop(0, mine, fetch_item, jnp.int32(0)), stages, empty)

        @pl.when(warpgroup < consumers)
        def _consume():
            share = pl.ds(pl.multiple_of(warpgroup * 64, 64), 64)

            def multiply_item(index: Any, step: Any):
                visit, column, count = item(index)

                def multiply(*total: Any):
                    def operands(slot: Any):
                        for term in terms:
                            matrix = rhs_ring[term.rhs].at[slot]
                            matrix = matrix.transpose((1, 0)) if term.transposed else matrix
                            yield lhs_ring[term.lhs].at[slot, share], matrix, total[term.sum]

                    return inside.multiply(count, step, stages, full, empty, total, lambda slot: list(operands(slot)))

                values = pl.run_scoped(multiply, *[plgpu.WGMMAAccumulatorRef((64, columns), jnp.float32)] * sums)
                base = pl.multiple_of(visits.first[visit] + warpgroup * 64, PIECE)
                low, high = (jnp.clip(row[visit] - base, 0, 64) for row in (visits.low, visits.high))

                @pl.when(low < high)
                def _():
                    def store(i: int, piece: Any, at: int):
                        place = pl.ds(column + at, tiles.CHUNK)
                        inside.store_rows(piece, out_ref[i], base, low, high, place, alignment)

                    inside.store_columns(finish(*values), staging, warpgroup, store)

                return step + count

            jax.lax.fori_loop(0, mine, multiply_item, jnp.int32(0))
            plgpu.wait_smem_to_gmem(0)

    matrix = [(columns, depth) if turned else (depth, columns) for turned in transposed]
    swizzle = inside.swizzle((k, depth), *((w.shape[2], shape[1]) for w, shape in zip(rhs, matrix, strict=True)))
    kernel = inside.launch(
        body,
        [jax.ShapeDtypeStruct((length, width), dtype)] * results,
        [
            [inside.operand((stages, tiling.rows, depth), swizzle) for _ in lhs],
            [inside.operand((stages, *shape), swizzle) for shape in matrix],
            inside.staging(consumers, dtype, width, alignment),
            plgpu.Barrier(num_arrivals=len(lhs) + len(rhs), num_barriers=stages),
            plgpu.Barrier(num_arrivals=consumers, num_barriers=stages),
        ],
        consumers,
        tiling.blocks,
        name,
    )
    return [x[:m, :n] for x in kernel(*visits, *lhs, *rhs)]
