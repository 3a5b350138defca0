"""What the kernels of this package share: how they are launched, and how rows and tiles leave a block.

Every kernel is persistent: a fixed number of blocks, each of some warpgroups that multiply (consumers) and a last
one that fetches (the producer), walk the same list of work. Operands go through a ring of slots in shared memory;
a slot's `full` barrier says that its copies have landed, its `empty` barrier that all consumers are done with it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

from slicedice.kernels.groups import Groups
from slicedice.kernels.pallas_gpu import tiles
from slicedice.kernels.varying import vary_as

BLOCK_ROWS = 64
"""Rows of one consumer's share of a tile: of one warpgroup's matrix instruction."""


def launch(
    body: Callable[..., None],
    out: Sequence[jax.ShapeDtypeStruct],
    scratch: Sequence[Any],
    consumers: int,
    blocks_per_processor: int,
    name: str,
) -> Callable[..., Sequence[jax.Array]]:
    """The kernel that runs `body(warpgroup, block, blocks, *inputs, *outputs, *scratch)` in every warpgroup."""
    blocks = tiles.processors() * blocks_per_processor

    def kernel(*refs: Any):
        body(jax.lax.axis_index("warpgroup"), jax.lax.axis_index("block"), blocks, *refs)

    kernel.__name__ = name
    call = plgpu.kernel(
        kernel,
        out_type=tuple(out),
        scratch_types=tuple(scratch),
        grid=(blocks,),
        grid_names=("block",),
        num_threads=consumers + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )

    def run(*inputs: jax.Array) -> Sequence[jax.Array]:
        # Indices are int32 throughout; under `jax_enable_x64` Python's numbers beside them would be int64.
        with jax.enable_x64(False):
            return [vary_as(x, *inputs) for x in call(*inputs)]

    return run


def share(items: Any, block: Any, blocks: int) -> Any:
    """How many of `items` pieces of work, dealt out one by one, fall to a block."""
    return jax.lax.div(items - block + (blocks - 1), jnp.int32(blocks))


def fetch(step: Any, stages: int, full: Any, empty: Any, copies: Sequence[tuple[Any, Any]]):
    """Copies what the ring's step `step` needs into its slot, once the slot is free: (source, ring) pairs."""
    slot = jax.lax.rem(step, jnp.int32(stages))

    @pl.when(step >= stages)
    def _():
        plgpu.barrier_wait(empty.at[slot])

    for source, ring in copies:
        plgpu.copy_gmem_to_smem(source, ring.at[slot], full.at[slot])


def multiply(
    count: Any,
    step: Any,
    stages: int,
    full: Any,
    empty: Any,
    sums: Sequence[Any],
    operands: Callable[[Any], Sequence[tuple[Any, Any, Any]]],
    prepare: Callable[[Any, Any], None] | None = None,
) -> Sequence[jax.Array]:
    """Adds up what `count` steps of the ring hold, from step `step` on, and gives their slots back.

    Args:
      count: how many steps.
      step: the first.
      stages: slots of the ring.
      full: their barriers.
      empty: likewise.
      sums: accumulators, zero.
      operands: (left, right, accumulator) of each product in a slot.
      prepare: what is done first, given the number of the step among these, and its slot.

    Returns:
      The values of the accumulators.
    """

    def multiply_step(i: Any, step: Any):
        slot = jax.lax.rem(step, jnp.int32(stages))
        plgpu.barrier_wait(full.at[slot])
        if prepare:
            prepare(i, slot)
        products = operands(slot)
        for left, right, total in products:
            plgpu.wgmma(total, left, right)
        plgpu.wgmma_wait(len(products))  # Those of the step before are done, and its slot is free.

        @pl.when(i > 0)
        def _():
            plgpu.barrier_arrive(empty.at[jax.lax.rem(step - 1, jnp.int32(stages))])

        return step + 1

    after = jax.lax.fori_loop(0, count, multiply_step, step)
    values = [total[...] for total in sums]

    @pl.when(count > 0)
    def _():
        plgpu.barrier_arrive(empty.at[jax.lax.rem(after - 1, jnp.int32(stages))])

    return values


def drain(step: Any, stages: int, empty: Any):
    """Waits until every slot of the ring is free, after `step` steps in all."""
    for ahead in range(stages):

        @pl.when(step + ahead >= stages)
        def _(ahead=ahead):
            plgpu.barrier_wait(empty.at[jax.lax.rem(step + ahead, jnp.int32(stages))])


def swizzle(*axes: tuple[int, int]) -> int:
    """The widest pieces, in bytes, that operands of one matrix instruction can be cut in, where all need the same.

    Args:
      axes: of each bfloat16 operand, the last axis of the array and of its tile. The copy engine sees arrays cut in
        pieces: they have to divide a tile, and an array that is wider than a piece.
    """
    return next(wide for wide in (64, 32, 16) if all(_fits(wide, size, tile) for size, tile in axes)) * 2


def _fits(piece: int, size: int, tile: int) -> bool:
    return tile % piece == 0 and (size <= piece or size % piece == 0)


def operand(shape: tuple[int, ...], swizzle: int) -> Any:
    """Shared memory for bfloat16 operands, in the layout of matrix instructions: pieces of eight rows."""
    transforms = plgpu.TilingTransform((8, swizzle // 2)), plgpu.SwizzleTransform(swizzle)
    return plgpu.SMEM(shape, jnp.bfloat16, transforms=transforms)


def alignment(groups: Groups) -> int:
    """Of the rows of groups, as far as it helps: 1, or a power of two from 8 on."""
    power = min(groups.alignment & -groups.alignment, BLOCK_ROWS)
    return power if power >= 8 else 1


def stored_width(columns: int, alignment: int, dtype: DTypeLike) -> int:
    """The width of a result: it leaves in pieces that divide it, of 64 columns if at any row, else of 16 or more.

    One of up to 64 columns is a piece or more as it is; but Mosaic finds no layout for rows of 8 columns in float32.
    """
    at_any_row = alignment % 8 != 0
    if columns > 64:
        return tiles.round_up(columns, 64 if at_any_row else 16)
    narrow = at_any_row and columns > 32 and jnp.dtype(dtype).itemsize == 4
    return tiles.round_up(columns, 16) if narrow else columns


def staging(consumers: int, dtype: DTypeLike, size: int, alignment: int) -> Any:
    """Shared memory for pieces of a result on their way out, [consumers, 2, 64, 64].

    Rows that leave at any offset are pieces of their own; the swizzle still keeps stores from one bank.

    Args:
      consumers: warpgroups that store.
      dtype: of the result.
      size: columns of the result.
      alignment: of the rows that leave.
    """
    each = jnp.dtype(dtype).itemsize
    wide = next(wide for wide in (128, 64, 32, 16) if _fits(wide // each, size, tiles.CHUNK))
    transforms = plgpu.TilingTransform((min(alignment, 8), wide // each)), plgpu.SwizzleTransform(wide)
    return plgpu.SMEM((consumers, 2, BLOCK_ROWS, tiles.CHUNK), dtype, transforms=transforms)


def store_columns(
    values: Sequence[jax.Array], staging: Any, warpgroup: Any, store: Callable[[int, Any, int], None]
) -> None:
    """Hands a consumer's [64, N] blocks to the copy engine in pieces of 64 columns, two of them in flight.

    Args:
      values: the blocks, in registers, each for a result of its own.
      staging: shared memory, [consumers, 2, 64, 64].
      warpgroup: which consumer this is.
      store: issues the copies of a piece, given the number of its block, where it lies, and its first column.
    """
    pieces = [(i, column) for i, value in enumerate(values) for column in range(0, value.shape[1], tiles.CHUNK)]
    for turn, (i, column) in enumerate(pieces):
        piece = staging.at[warpgroup, turn % 2]
        # Where their number is odd, the last piece of the time before lay where the first one does.
        plgpu.wait_smem_to_gmem(int(turn > 0 or len(pieces) % 2 == 0), wait_read_only=True)
        piece[...] = values[i][:, column : column + tiles.CHUNK].astype(staging.dtype)
        plgpu.commit_smem()
        store(i, piece, column)
        plgpu.commit_smem_to_gmem_group()


def store_rows(piece: Any, out: Any, base: Any, low: Any, high: Any, columns: Any, alignment: int) -> None:
    """Copies rows [low, high) of a piece to the same rows of `out`, counted from `base`.

    The copy engine moves blocks whose height is known when the kernel is compiled, so any number of rows is moved
    as a sum of powers of two, the largest first; no row of another group is touched.

    Args:
      piece: 64 rows in shared memory.
      out: rows in device memory.
      base: the row of `out` that the piece's first row would be.
      low: first row to move.
      high: first row past those to move.
      columns: which columns of `out`.
      alignment: every row number here is a multiple of this, a power of two.
    """
    rows = jnp.maximum(high - low, 0)
    height = BLOCK_ROWS
    while height >= alignment:
        at = pl.multiple_of(low, min(height, alignment)) if alignment > 1 else low

        @pl.when((rows & height) != 0)
        def _(height=height, at=at):
            plgpu.copy_smem_to_gmem(
                piece.at[pl.ds(at, height)],
                out.at[pl.ds(pl.multiple_of(base + at, min(alignment, 8)), height), columns],
                commit_group=False,
            )

        low = low + (rows & height)
        height //= 2
