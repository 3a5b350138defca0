"""Which rows are worked on together: the list of visits that the kernels which write rows walk.

A visit is some rows of one group, or of one hole (rows of no group, to be written as zeros), within one tile. Tiles
begin with each group, not at multiples of their height, so that a group of a tile's size is one visit instead of
two; but the copy engine fills the layouts that matrix instructions read in pieces of eight rows, so a tile begins
at the multiple of eight at or before. The list is computed once for a call, in XLA, by one scatter and running
sums, so that no kernel searches for its group.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from slicedice.kernels.groups import Groups

PIECE = 8
"""Rows at whose multiples a tile may begin."""


class Visits(NamedTuple):
    """A list of visits. Together they hold every row once; what follows the last is of no meaning.

    Attributes:
      group: whose rows these are, -1 for a hole, [V].
      first: the first row of the tile, a multiple of 8, [V].
      low: the first row of the visit, [V].
      high: the first row past it, at most `first + tile_rows`, [V].
      count: how many visits there are, [1].
    """

    group: Int[Array, " V"]
    first: Int[Array, " V"]
    low: Int[Array, " V"]
    high: Int[Array, " V"]
    count: Int[Array, " 1"]


def most_visits(groups: Groups, rows: int, tile_rows: int) -> int:
    """The most visits there can be: every tile once, one more for each group and hole, and some for their offsets."""
    parts = groups.sizes.shape[0] + groups.members
    offsets = 0 if groups.alignment % PIECE == 0 else -(-(PIECE - 2) * parts // tile_rows)
    return -(-rows // tile_rows) + parts + offsets


def visits_of(groups: Groups, rows: int, tile_rows: int, length: int) -> Visits:
    """Lists the visits that write `rows` rows, in order, so that neighbours in time share the matrix of their group.

    Args:
      groups: the groups.
      rows: M.
      tile_rows: rows in a tile.
      length: of the arrays that the rows lie in, a multiple of 8, at least M and `tile_rows`.
    """
    sizes = groups.sizes.astype(jnp.int32).reshape(groups.members, -1)
    each = sizes.shape[1]
    holes = rows // groups.members - sizes.sum(1, keepdims=True, dtype=jnp.int32)
    parts = jnp.concatenate([sizes, holes], axis=1).reshape(-1)
    end = jnp.cumsum(parts, dtype=jnp.int32)
    start = end - parts
    origin = start // PIECE * PIECE
    number = jnp.where(parts > 0, -(-(end - origin) // tile_rows), 0)
    past = jnp.cumsum(number, dtype=jnp.int32)
    most = most_visits(groups, rows, tile_rows)
    part = jnp.repeat(jnp.arange(parts.shape[0], dtype=jnp.int32), number, total_repeat_length=most)
    tile = origin[part] + (jnp.arange(most, dtype=jnp.int32) - (past - number)[part]) * tile_rows
    member, of_member = part // (each + 1), part % (each + 1)
    return Visits(
        group=jnp.where(of_member == each, -1, member * each + of_member),
        first=jnp.minimum(tile, length - tile_rows),
        low=jnp.maximum(tile, start[part]),
        high=jnp.minimum(tile + tile_rows, end[part]),
        count=past[-1:],
    )
