"""Sums of outer products of the rows of each group, as one kernel: weight gradients.

Work is dealt out by tiles of the result, group after group; an empty group's tiles take no steps and are stored as
the zeros they begin with. Runs on Hopper; see the package for what has been run where.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike
from jaxtyping import Array

from slicedice.kernels.groups import Groups
from slicedice.kernels.pallas_gpu import inside, tiles
from slicedice.kernels.pallas_gpu.visits import PIECE


def outer(lhs: Array, rhs: Sequence[Array], groups: Groups, dtype: DTypeLike, name: str) -> Sequence[Array]:
    """Sums the outer products of each group's rows of `lhs` with those of every `rhs`.

    Args:
      lhs: rows, bfloat16, [M, K]; K and N as `tiles.padded_widths` wants them together.
      rhs: rows, bfloat16, each [M, N].
      groups: which rows belong to which.
      dtype: of the results.
      name: of the kernel.

    Returns:
      The results, each [G, K, N].
    """
    (m, k), n, number = lhs.shape, rhs[0].shape[1], groups.sizes.shape[0]
    tiling = tiles.outer(k, n, rhs=len(rhs), out=dtype)
    consumers, stages, columns = tiling.consumers, tiling.stages, tiling.columns
    length = max(tiles.round_up(m, PIECE), tiles.STEP)
    lhs, *rhs = (jnp.pad(x, ((0, length - m), (0, 0))) for x in (lhs, *rhs))
    start = groups.starts(m).astype(jnp.int32)
    end = start + groups.sizes.astype(jnp.int32)
    row_tiles, column_tiles = pl.cdiv(k, tiling.rows), pl.cdiv(n, columns)
    items = number * row_tiles * column_tiles

    def body(warpgroup: Any, block: Any, blocks: int, start: Any, end: Any, lhs_ref: Any, *refs: Any):
        rhs_ref, refs = refs[: len(rhs)], refs[len(rhs) :]
        out_ref, (lhs_ring, rhs_ring, staging, full, empty, cleared) = refs[: len(rhs)], refs[len(rhs) :]
        mine = inside.share(jnp.int32(items), block, blocks)

        def item(index: Any) -> tuple[Any, Any, Any, Any]:
            """The group, the first row and column of its tile, and how many steps its rows take."""
            at = block + index * blocks
            group = jax.lax.div(at, jnp.int32(row_tiles * column_tiles))
            at = jax.lax.rem(at, jnp.int32(row_tiles * column_tiles))
            row, column = (op(at, jnp.int32(column_tiles)) for op in (jax.lax.div, jax.lax.rem))
            low, high = start[group], end[group]
            steps = jnp.where(high > low, jax.lax.div(high - _origin(low) + (tiles.STEP - 1), tiles.STEP), 0)
            return group, row * tiling.rows, column * columns, steps

        def first_row(group: Any, i: Any) -> Any:
            return pl.multiple_of(jnp.minimum(_origin(start[group]) + i * tiles.STEP, length - tiles.STEP), PIECE)

        @pl.when(warpgroup == consumers)
        def _produce():
            def fetch_item(index: Any, step: Any):
                group, row, column, steps = item(index)

                def fetch_step(i: Any, step: Any):
                    taken = pl.ds(first_row(group, i), tiles.STEP)
                    copies = [(lhs_ref.at[taken, pl.ds(row, tiling.rows)], lhs_ring)]
                    copies += [
                        (x.at[taken, pl.ds(column, columns)], ring) for x, ring in zip(rhs_ref, rhs_ring, strict=True)
                    ]
                    inside.fetch(step, stages, full, empty, copies)
                    return step + 1

                return jax.lax.fori_loop(0, steps, fetch_step, step)

            inside.drain(jax.lax.fori_loop(0, mine, fetch_item, jnp.int32(0)), stages, empty)

        @pl.when(warpgroup < consumers)
        def _consume():
            share = pl.ds(pl.multiple_of(warpgroup * 64, 64), 64)

            def clear(slot: Any, low: Any, high: Any):
                """Puts zeros in the rows of other groups, which may be NaN in both operands; consumers share this."""
                parts = [(lhs_ring, i) for i in range(consumers)]
                parts += [(ring, i) for ring in rhs_ring for i in range(columns // 64)]
                for turn, (ring, i) in enumerate(parts):

                    @pl.when(warpgroup == turn % consumers)
                    def _(ring: Any = ring, i: int = i):
                        part = ring.at[slot, :, pl.ds(i * 64, 64)]
                        row = jax.lax.broadcasted_iota(jnp.int32, (tiles.STEP, 64), 0)
                        part[...] = jnp.where((row >= low) & (row < high), part[...], jnp.bfloat16(0))

                plgpu.commit_smem()
                plgpu.barrier_arrive(cleared.at[0])
                plgpu.barrier_wait(cleared.at[0])

            def multiply_item(index: Any, step: Any):
                group, row, column, steps = item(index)

                def prepare(i: Any, slot: Any):
                    first = first_row(group, i)
                    # Where the last rows of the array are read, some were in the step before.
                    low = jnp.maximum(start[group], _origin(start[group]) + i * tiles.STEP) - first
                    high = end[group] - first

                    @pl.when((low > 0) | (high < tiles.STEP))
                    def _():
                        clear(slot, low, high)

                def multiply(*total: Any):
                    def operands(slot: Any):
                        left = lhs_ring.at[slot, :, share].transpose((1, 0))
                        return [(left, ring.at[slot], sums) for ring, sums in zip(rhs_ring, total, strict=True)]

                    return inside.multiply(steps, step, stages, full, empty, total, operands, prepare)

                values = pl.run_scoped(multiply, *[plgpu.WGMMAAccumulatorRef((64, columns), jnp.float32)] * len(rhs))
                place = pl.ds(pl.multiple_of(row + warpgroup * 64, 64), 64)

                def store(i: int, piece: Any, at: int):
                    out = out_ref[i].at[group, place, pl.ds(column + at, tiles.CHUNK)]
                    plgpu.copy_smem_to_gmem(piece, out, commit_group=False)

                inside.store_columns(values, staging, warpgroup, store)
                return step + steps

            jax.lax.fori_loop(0, mine, multiply_item, jnp.int32(0))
            plgpu.wait_smem_to_gmem(0)

    swizzle = inside.swizzle((k, tiling.rows), (n, columns))
    kernel = inside.launch(
        body,
        [jax.ShapeDtypeStruct((number, k, n), dtype)] * len(rhs),
        [
            inside.operand((stages, tiles.STEP, tiling.rows), swizzle),
            [inside.operand((stages, tiles.STEP, columns), swizzle) for _ in rhs],
            inside.staging(consumers, dtype, n, PIECE),
            plgpu.Barrier(num_arrivals=1 + len(rhs), num_barriers=stages),
            plgpu.Barrier(num_arrivals=consumers, num_barriers=stages),
            plgpu.Barrier(num_arrivals=consumers, num_barriers=1),
        ],
        consumers,
        tiling.blocks,
        name,
    )
    return kernel(start, end, lhs, *rhs)


def _origin(row: Any) -> Any:
    """The multiple of eight at or before a row."""
    return row - jax.lax.rem(row, jnp.int32(PIECE))
