"""How large the blocks are that a kernel moves: chosen from rows per group, widths, dtypes and the chip.

Nothing here is measured, for want of a TPU: the choice follows a model of what a visit costs (see `row_tile`).
That it fits has been confirmed by the compiler for the shapes of benchmarks/tpu_compile.py, in bfloat16.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from slicedice.kernels.pallas_tpu.visits import fits_scalar_memory

LANES = 128
STEP_SECONDS = 0.35e-6
"""Of one grid step that does nothing: JAX's guide to Pallas pipelines on TPU."""
CYCLES = 1e9
"""A second, of a core; the generations run at 0.9 to 1.8 of it."""
MOST_ROWS = 512
LEAST_ROWS = 32
SMALL_TILE = 512
"""Columns below which a tile is not cut further while something else can be."""
HEADROOM = 4 * 2**20
"""Of VMEM, for what the compiler keeps there beside our blocks."""


class Pieces(NamedTuple):
    """Rows and columns of the pieces that a kernel cuts its products in, so as to hold them in vector registers.

    Attributes:
      product: of rows with a matrix.
      pull: of a sum of two of these.
      activate: of two of these and what follows, in the forward pass.
      gradients: of three of these and what follows, in the backward pass.
      outer: of a product over rows.
    """

    product: tuple[int, int]
    pull: tuple[int, int]
    activate: tuple[int, int]
    gradients: tuple[int, int]
    outer: tuple[int, int]


PIECES = {
    5: Pieces(product=(128, 128), pull=(128, 128), activate=(64, 128), gradients=(32, 128), outer=(256, 128)),
    6: Pieces(product=(128, 256), pull=(128, 128), activate=(64, 256), gradients=(32, 256), outer=(256, 256)),
    7: Pieces(product=(128, 256), pull=(128, 256), activate=(128, 256), gradients=(64, 256), outer=(256, 256)),
}
"""By generation: those of the shortest schedules among the ones that were compiled.

Of the kernels in benchmarks/results/tpu_compile.json 75 of 1,078 spill vector registers, none of them at the study's
finest experts, F = 52. Generation 6, with 50 of these, adds up in vector registers what its two matrix units make in
parts of K, and spills where K and N are large; pieces that avoid that take 1.5 to 2.5 times the cycles. Generation 7
has 23, 19 in the backward pass. With `gradients` of 32 rows none of these 19 spills, but at D = 2048 and F = 128 that
takes about 1.7 times the bundles a row; the products that spill there start one in each matrix unit every cycle.
"""


def lower_if_deep(piece: tuple[int, int], depth: int) -> tuple[int, int]:
    """Half as high a piece, of products over so long an axis that the rows alone fill the vector registers."""
    height, width = piece
    return (height // 2 if depth > 1024 else height, width)


class Chip(NamedTuple):
    """What the choice of tiles needs to know of one TPU core.

    Attributes:
      vmem: bytes of VMEM.
      flops: bfloat16 operations a second.
      bandwidth: of HBM, bytes a second.
      columns: of a matrix unit; a product of fewer rows than these takes as long as one of so many.
      pieces: of products.
    """

    vmem: int
    flops: float
    bandwidth: float
    columns: int
    pieces: Pieces

    @property
    def budget(self) -> int:
        """Bytes of VMEM that our blocks may take, scratch and pipelining included."""
        return self.vmem * 7 // 8 - HEADROOM


class TooWideError(ValueError):
    """Not even the least tiles of a kernel fit VMEM."""


class Plan(NamedTuple):
    """The tiles of a kernel.

    Attributes:
      rows: in a tile.
      widths: of the tiles of each width that is cut.
      vmem: bytes that the blocks and scratch of this plan take.
    """

    rows: int
    widths: tuple[int, ...]
    vmem: int


def chip() -> Chip:
    """The chip that is compiled for; where that is no TPU, as in interpret mode, the one of least VMEM."""
    try:
        info = pltpu.get_tpu_info()
    except ValueError:
        info = pltpu.get_tpu_info_for_chip(pltpu.ChipVersion.TPU_V5P, 1)
    return Chip(
        vmem=info.vmem_capacity_bytes,
        flops=info.bf16_ops_per_second,
        bandwidth=info.mem_bw_bytes_per_second,
        columns=info.mxu_column_size,
        pieces=PIECES[min(max(info.generation, 5), 7)],
    )


def block_bytes(shape: Sequence[int], dtype: DTypeLike, copies: int = 2) -> int:
    """Bytes of VMEM of a block, padded as VMEM pads, in as many copies as pipelining keeps (1 for scratch)."""
    size = np.dtype(dtype).itemsize
    *outer, rows, columns = shape
    return copies * math.prod(outer) * round_up(rows, sublanes(dtype)) * round_up(columns, LANES) * size


def accumulator_bytes(shape: Sequence[int], dtype: DTypeLike) -> int:
    """Bytes of the float32 scratch that a result of this dtype is summed in."""
    return 0 if np.dtype(dtype) == jnp.float32 else block_bytes(shape, jnp.float32, 1)


def vmem_limit(used: int) -> int:
    """What to allow a kernel whose blocks take `used` bytes: no more than it needs, the rest is XLA's."""
    return min(chip().vmem * 15 // 16, used + used // 4 + 2 * HEADROOM)


def sublanes(*dtypes: DTypeLike) -> int:
    """Rows of the smallest piece of VMEM that holds each of these dtypes."""
    return max(32 // np.dtype(dtype).itemsize for dtype in dtypes)


def compute_dtype(*dtypes: DTypeLike) -> np.dtype:
    """The dtype to multiply in: bfloat16 if all are that, else float32."""
    return np.dtype(jnp.bfloat16 if all(np.dtype(dtype) == jnp.bfloat16 for dtype in dtypes) else jnp.float32)


def matmul_seconds(k: int, n: int, dtype: DTypeLike) -> float:
    """Seconds that the matrix units take for one row of a [K, N] product; float32 takes six passes of bfloat16."""
    passes = 1 if np.dtype(dtype) == jnp.bfloat16 else 6
    return 2 * round_up(k, LANES) * round_up(n, LANES) * passes / chip().flops


def pass_seconds(shape: tuple[int, int]) -> float:
    """Seconds that adding a float32 block to another takes, at one vector register a cycle."""
    return round_up(shape[0], 8) * round_up(shape[1], LANES) / 1024 / CYCLES


def row_tile(rows: int, groups: int, *, row_seconds: float, visit_seconds: float = 0.0, piece: int = MOST_ROWS) -> int:
    """Rows in a tile, a power of two.

    There are about M / tile + G visits, as the edge of a group is rarely that of a tile, and each computes whole
    pieces of a tile, or the tile if that is lower: tall ones waste work at the edges, low ones pay for more steps.

    Args:
      rows: M, at least 1.
      groups: G.
      row_seconds: of computing one row.
      visit_seconds: of what a visit does besides, whatever the tile's height.
      piece: rows that are computed together; pieces without a row of the group are passed over.

    Raises:
      ValueError: no tile keeps the list of visits within scalar memory.
    """

    def seconds(tile: int) -> float:
        computed = min(tile, piece)
        visits = rows / tile + groups
        pieces = rows / computed + (visits if computed < tile else groups)
        return visits * (STEP_SECONDS + visit_seconds) + pieces * max(computed, chip().columns) * row_seconds

    highest = max(LEAST_ROWS, min(MOST_ROWS, 2 ** math.ceil(math.log2(rows))))
    heights = [2**i for i in range(LEAST_ROWS.bit_length() - 1, highest.bit_length())]
    heights = [tile for tile in heights if fits_scalar_memory(rows, groups, tile)]
    if not heights:
        raise ValueError(f"M = {rows} rows in G = {groups} groups: their list does not fit a TPU's scalar memory")
    return min(heights, key=lambda tile: (seconds(tile), tile))


def narrowed(*widths: int) -> Iterator[tuple[int, ...]]:
    """Ever narrower tiles of these widths, whole ones first, then the last width cut before the others."""
    parts = [1] * len(widths)
    while True:
        tiles = tuple(part_of(width, count) for width, count in zip(widths, parts, strict=True))
        yield tiles
        large = [i for i, tile in enumerate(tiles) if tile > SMALL_TILE] or [
            i for i, t in enumerate(tiles) if t > LANES
        ]
        if not large:
            return
        parts[large[-1]] += 1


def part_of(width: int, parts: int) -> int:
    """The width of tiles when cut in at most so many parts: all of it, or a multiple of the lanes."""
    return width if parts == 1 or width <= LANES else round_up(pl.cdiv(width, parts), LANES)


def plan(rows: int, widths: tuple[int, ...], used: Callable[..., int]) -> Plan:
    """The widest tiles whose blocks, of `used(rows, *widths)` bytes, fit the budget; lower ones if none do.

    Raises:
      TooWideError: not even the least do.
    """
    while True:
        for tile in narrowed(*widths):
            if used(rows, *tile) <= chip().budget:
                return Plan(rows, tile, used(rows, *tile))
        if rows <= LEAST_ROWS:
            raise TooWideError(f"no tiles of widths {widths} fit a TPU's VMEM of {chip().vmem} bytes")
        rows //= 2


def round_up(x: int, multiple: int) -> int:
    """The least multiple that is no less than x."""
    return -(-x // multiple) * multiple


def flips(rows: int, columns: int) -> bool:
    """Whether [G, rows, columns] is smaller in memory as [G, columns, rows], whose rows are padded to the lanes.

    Where it is, XLA prefers to store it so, and the swap of axes costs nothing.
    """
    return round_up(rows, LANES) * round_up(columns, 8) < round_up(columns, LANES) * round_up(rows, 8)
