"""How large the tiles are that a kernel moves: chosen from rows per group, widths and dtypes.

The choice follows the rules of thumb below, and the compiler has confirmed that each fits. What it gives was measured
(docs/kernels.md), other choices were not: the constants are what to tune first where there is a device.
"""

import math
from typing import NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike

PROCESSORS = 132
"""Of an H100 or H200 with all its multiprocessors."""
SHARED_BYTES = 224 * 1024
"""Of the 227 KiB of shared memory a block may have; the rest is the compiler's, for barriers and reductions."""
MOST_STAGES = 6
STEP = 64
"""Of the contracted axis that one slot of a ring holds: 128 bytes, the widest swizzle."""
CHUNK = 64
"""Columns of a result that are stored at once."""
SMALL_GROUP = 96
"""Rows per group, on average, up to which tiles have 64 rows, and a processor runs two blocks to hide latency."""
MATRIX_RATE = 4096
"""bfloat16 operations a cycle of one processor's matrix units."""
CACHE_RATE = 30
"""Bytes a cycle that one processor draws from the second-level cache while all do."""


class Tiling(NamedTuple):
    """Sizes of one kernel.

    Attributes:
      consumers: warpgroups that multiply; each has 64 rows of a tile.
      columns: of a tile of the result.
      stages: slots of the ring.
      blocks: resident on one processor.
    """

    consumers: int
    columns: int
    stages: int
    blocks: int

    @property
    def rows(self) -> int:
        """Of a tile of the result."""
        return 64 * self.consumers


def processors() -> int:
    """Multiprocessors of the device in use, or of a whole Hopper chip where there is none."""
    return getattr(jax.devices()[0], "core_count", None) or PROCESSORS


def round_up(size: int, multiple: int) -> int:
    """The least multiple that is no less than `size`."""
    return -(-size // multiple) * multiple


def padded_rows(size: int) -> int:
    """The size that an axis before the last is padded to: it is moved in pieces of eight."""
    return round_up(size, 8)


def padded_widths(*sizes: int) -> tuple[int, ...]:
    """The sizes that last axes are padded to, of arrays that meet in a matrix instruction: the least that fit together.

    The copy engine wants rows of a multiple of 16 bytes, which is eight values. It cuts arrays in pieces of 64, 32 or
    16 columns, the same for all that meet: an axis is no wider than a piece, or a multiple of it. So 832 and 52 become
    832 and 56, pieces being of 64 columns; 80 and 52 become 80 and 64, in pieces of 16.
    """

    def padded(piece: int) -> tuple[int, ...]:
        return tuple(round_up(size, 8 if size <= piece else piece) for size in sizes)

    return min(map(padded, (64, 32, 16)), key=math.prod)


def products(rows: int, groups: int, columns: int, *, lhs: int, rhs: int, sums: int, out: DTypeLike) -> Tiling:
    """For rows times the matrix of their group.

    Args:
      rows: M.
      groups: G.
      columns: N, of every product.
      lhs: arrays of rows read.
      rhs: arrays of matrices read.
      sums: products held in registers at once, each [64, columns] of a consumer.
      out: dtype of the results.
    """
    consumers = 1 if rows <= SMALL_GROUP * groups else 2

    def slot(tile: int) -> int:
        return 2 * STEP * (lhs * 64 * consumers + rhs * tile)

    staging = _staging(consumers, out)
    shared = consumers == 1 and sums == 1  # What follows several sums takes more registers than two blocks leave.
    most = (128 if shared else 256 // sums) // 64 * 64
    while most > 64 and 3 * slot(most) + staging > SHARED_BYTES:
        most -= 64
    tile = _columns(columns, most, 64 * consumers)
    return Tiling(consumers, tile, *_residence(slot(tile), staging, shared))


def outer(rows: int, columns: int, *, rhs: int, out: DTypeLike) -> Tiling:
    """For sums of outer products, [rows, columns] for each group and each `rhs`."""
    consumers = 1 if rows <= 64 else 2
    # With two consumers a thread has 168 registers, and clearing rows of other groups takes some beside the sums.
    most = (256 if consumers == 1 else 192) // rhs // 64 * 64
    tile = _columns(columns, most, 64 * consumers)
    slot = 2 * STEP * (64 * consumers + rhs * tile)
    return Tiling(consumers, tile, *_residence(slot, _staging(consumers, out), consumers == 1 and tile * rhs <= 128))


def _step_cycles(rows: int, columns: int) -> float:
    """Of one step of 64 along the contracted axis: the longer of multiplying and of fetching."""
    return max(2 * rows * columns * 64 / MATRIX_RATE, (rows + columns) * 64 * 2 / CACHE_RATE)


class Fused(NamedTuple):
    """Sizes of the kernel that keeps hidden values on the chip.

    Attributes:
      consumers: warpgroups that multiply; each has 64 rows of a tile.
      hidden: columns of the hidden values, which take all of F.
      stages: slots of the ring of rows, gate and up.
      columns: of a tile of the result.
      down_stages: slots of the ring of down.
      blocks: resident on one processor.
    """

    consumers: int
    hidden: int
    stages: int
    columns: int
    down_stages: int
    blocks: int

    @property
    def rows(self) -> int:
        """Of a tile of the result."""
        return 64 * self.consumers


WIDEST_FUSED = 128
"""F up to which the hidden values stay on the chip: both sums over them fill the registers."""


def fused(rows: int, groups: int, width: int, hidden: int, out: DTypeLike) -> Fused:
    """For M rows of width D of G experts of hidden width F, at most `WIDEST_FUSED`."""
    consumers = 1 if rows <= SMALL_GROUP * groups else 2
    hidden = round_up(hidden, 64)
    # Of a result of one piece the copy engine is told no piece's number: a second one would be written over the first.
    columns, down_stages = (128 if hidden == 64 and width > CHUNK else 64), 2
    slot = 2 * STEP * (64 * consumers + 2 * hidden)
    kept = 2 * hidden * (64 * consumers + down_stages * columns) + _staging(consumers, out)
    stages, blocks = _residence(slot, kept, shared=False)
    return Fused(consumers, hidden, stages, columns, down_stages, blocks)


def _columns(size: int, most: int, rows: int) -> int:
    """Columns of a tile of at most `most`, the cheapest for `size` in all; the last tile need not be full."""
    options = range(64, min(most, round_up(size, 64)) + 1, 64)
    return min(options, key=lambda tile: (-(-size // tile) * _step_cycles(rows, tile), -tile))


def _staging(consumers: int, out: DTypeLike) -> int:
    """Bytes of two pieces of 64 rows of a result, for every consumer."""
    return 2 * consumers * 64 * CHUNK * np.dtype(out).itemsize


def _residence(slot: int, others: int, shared: bool) -> tuple[int, int]:
    """Slots of a ring, and blocks on a processor: two if registers let it be shared, and three slots fit in each.

    A slot is given back a step late, so that with less than two nothing would move.
    """
    for blocks in (2, 1) if shared else (1,):
        stages = min(MOST_STAGES, (SHARED_BYTES // blocks - others) // slot)
        if stages > blocks:
            return stages, blocks
    raise ValueError(f"two slots of {slot} bytes do not fit shared memory beside {others}")
