"""The expert feed-forward network as one kernel whose hidden values never leave the chip: for fine experts.

At F = 32 to 128 the down projection alone would read and write as much as it computes on. Here a block takes the
rows of one visit through gate and up, keeps silu(gate) * up in shared memory, and multiplies it with down, column
tile after column tile. Runs on Hopper; see the package for what has been run where.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from slicedice.kernels.groups import Groups
from slicedice.kernels.pallas_gpu import inside, tiles
from slicedice.kernels.pallas_gpu.visits import PIECE, Visits, visits_of


def fused(
    rows: Array,
    gate: Array,
    up: Array,
    down: Array,
    groups: Groups,
    activate: Callable[[Array, Array], Array],
) -> Array:
    """Computes down(activate(gate(x), up(x))) of each row x with the matrices of its expert.

    Args:
      rows: bfloat16, [M, D]; all last axes are as `tiles.padded_widths` wants them together, those before the last of
        matrices as `tiles.padded_rows` does.
      gate: bfloat16, [E, D, F]; F at most `tiles.WIDEST_FUSED`.
      up: as `gate`.
      down: bfloat16, [E, F, D].
      groups: which rows belong to which expert.
      activate: of two blocks of float32; zeros must become zeros.

    Returns:
      [M, D], bfloat16; zeros in rows of no group.
    """
    (m, d), (experts, _, f) = rows.shape, gate.shape
    tiling = tiles.fused(m, experts, d, f, rows.dtype)
    consumers, stages, hidden, columns = tiling.consumers, tiling.stages, tiling.hidden, tiling.columns
    length = max(tiles.round_up(m, PIECE), tiling.rows)
    rows = jnp.pad(rows, ((0, length - m), (0, 0)))
    visits = visits_of(groups, m, tiling.rows, length)
    steps, column_tiles = pl.cdiv(d, tiles.STEP), pl.cdiv(d, columns)
    alignment = inside.alignment(groups)
    width = inside.stored_width(d, alignment, rows.dtype)

    def body(warpgroup: Any, block: Any, blocks: int, *refs: Any):
        visits, refs = Visits(*refs[: len(Visits._fields)]), refs[len(Visits._fields) :]
        rows_ref, gate_ref, up_ref, down_ref, out_ref, rings, down_ring, kept, staging, *barriers = refs
        full, empty, down_full, down_empty = barriers
        mine = inside.share(visits.count[0], block, blocks)

        @pl.when(warpgroup == consumers)
        def _produce():
            def fetch_visit(index: Any, taken: tuple[Any, Any]):
                visit = block + index * blocks
                group = visits.group[visit]
                # From 0 on; but that the tile may pass F must not be known when this is traced.
                all_hidden = pl.ds(pl.multiple_of(jnp.minimum(group, 0), 64), hidden)
                tall = pl.ds(pl.multiple_of(visits.first[visit], PIECE), tiling.rows)

                def fetch_step(i: Any, step: Any):
                    along = pl.ds(i * tiles.STEP, tiles.STEP)
                    sources = rows_ref.at[tall, along], *(w.at[group, along, all_hidden] for w in (gate_ref, up_ref))
                    inside.fetch(step, stages, full, empty, list(zip(sources, rings, strict=True)))
                    return step + 1

                def fetch_down(i: Any, step: Any):
                    source = down_ref.at[group, all_hidden, pl.ds(i * columns, columns)]
                    inside.fetch(step, tiling.down_stages, down_full, down_empty, [(source, down_ring)])
                    return step + 1

                some = jnp.where(group >= 0, 1, 0)
                step = jax.lax.fori_loop(0, some * steps, fetch_step, taken[0])
                return step, jax.lax.fori_loop(0, some * column_tiles, fetch_down, taken[1])

            step, down_step = jax.lax.fori_loop(0, mine, fetch_visit, (jnp.int32(0), jnp.int32(0)))
            inside.drain(step, stages, empty)
            inside.drain(down_step, tiling.down_stages, down_empty)

        @pl.when(warpgroup < consumers)
        def _consume():
            share = pl.ds(pl.multiple_of(warpgroup * 64, 64), 64)

            def compute_visit(index: Any, taken: tuple[Any, Any]):
                visit = block + index * blocks
                some = jnp.where(visits.group[visit] >= 0, 1, 0)
                base = pl.multiple_of(visits.first[visit] + warpgroup * 64, PIECE)
                low, high = (jnp.clip(row[visit] - base, 0, 64) for row in (visits.low, visits.high))

                def into_hidden(*sums: Any):
                    def operands(slot: Any):
                        x, *matrices = (ring.at[slot] for ring in rings)
                        return [(x.at[share], w, total) for w, total in zip(matrices, sums, strict=True)]

                    return inside.multiply(some * steps, taken[0], stages, full, empty, sums, operands)

                sums = [plgpu.WGMMAAccumulatorRef((64, hidden), jnp.float32)] * 2
                values = pl.run_scoped(into_hidden, *sums)
                # Few values at once: registers are short.
                for part in (slice(i, i + 64) for i in range(0, hidden, 64)):
                    kept[warpgroup, :, part] = activate(*(value[:, part] for value in values)).astype(kept.dtype)
                plgpu.commit_smem()

                def out_of_hidden(i: Any, step: Any):
                    def project(total: Any):
                        def operands(slot: Any):
                            return [(kept.at[warpgroup], down_ring.at[slot], total)]

                        return inside.multiply(some, step, tiling.down_stages, down_full, down_empty, [total], operands)

                    values = pl.run_scoped(project, plgpu.WGMMAAccumulatorRef((64, columns), jnp.float32))

                    def store(_: int, piece: Any, at: int):
                        place = pl.ds(i * columns + at, tiles.CHUNK)
                        inside.store_rows(piece, out_ref, base, low, high, place, alignment)

                    @pl.when(low < high)
                    def _():
                        inside.store_columns(values, staging, warpgroup, store)

                    return step + some

                down_step = jax.lax.fori_loop(0, column_tiles, out_of_hidden, taken[1])
                return taken[0] + some * steps, down_step

            jax.lax.fori_loop(0, mine, compute_visit, (jnp.int32(0), jnp.int32(0)))
            plgpu.wait_smem_to_gmem(0)

    into = inside.swizzle((d, tiles.STEP), (f, hidden))
    out_of = inside.swizzle((d, columns), (hidden, hidden))
    kernel = inside.launch(
        body,
        [jax.ShapeDtypeStruct((length, width), rows.dtype)],
        [
            [
                inside.operand((stages, tiling.rows, tiles.STEP), into),
                *[inside.operand((stages, tiles.STEP, hidden), into)] * 2,
            ],
            inside.operand((tiling.down_stages, hidden, columns), out_of),
            inside.operand((consumers, 64, hidden), out_of),
            inside.staging(consumers, rows.dtype, width, alignment),
            plgpu.Barrier(num_arrivals=3, num_barriers=stages),
            plgpu.Barrier(num_arrivals=consumers, num_barriers=stages),
            plgpu.Barrier(num_arrivals=1, num_barriers=tiling.down_stages),
            plgpu.Barrier(num_arrivals=consumers, num_barriers=tiling.down_stages),
        ],
        consumers,
        tiling.blocks,
        "expert_ffn",
    )
    (out,) = kernel(*visits, rows, gate, up, down)
    return out[:m, :d]
