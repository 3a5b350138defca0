"""Which row tile meets which group: the list of visits that every kernel of this package walks.

Rows are cut in tiles of equal height, whatever the groups are. A visit is one tile with one group: a tile
that holds rows of three groups is visited three times in a row, and a group of many tiles likewise. The number
of visits is known on the device only, so it is a traced grid dimension; nothing is launched for what is not
visited. The list lives in scalar memory, 1 MiB a core: it is kept to 4 bytes a visit and 12 bytes a group.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from slicedice.kernels.groups import Groups

SCALAR_BYTES = 896 * 1024
"""Of scalar memory for a list of visits. A core has 1 MiB, and the compiler was seen to take a list of all of it; what
is left is for the compiler's own. It holds the lists of 16,384 groups three times over."""


class Visits(NamedTuple):
    """A list of visits, all of it to be prefetched into scalar memory. In kernels, the same with references.

    Visits are ordered by group and by tile at once, so that consecutive visits share a tile, a group, or neither.

    Attributes:
      group: of each visit; what follows the last visit is of no meaning, [V].
      shift: visit v of group g is to tile `shift[g] + v`, [G].
      start: first row of each group, [G].
      end: first row past each group, [G].
    """

    group: Any
    shift: Any
    start: Any
    end: Any

    def tile(self, visit: Any) -> Any:
        """The tile of a visit."""
        return self.shift[self.group[visit]] + visit

    def tile_to_read(self, visit: Any, tile_rows: int) -> Any:
        """The same, but for tiles that hold no row: these repeat the one before, so that nothing is fetched."""
        filled = (self.end[self.group[visit]] - 1) >> (tile_rows.bit_length() - 1)
        return jnp.maximum(jnp.minimum(self.tile(visit), filled), 0)

    def first_of_tile(self, visit: Any) -> Any:
        """Whether no visit before was to the same tile."""
        return (visit == 0) | (self.tile(jnp.maximum(visit - 1, 0)) != self.tile(visit))

    def first_of_group(self, visit: Any) -> Any:
        """Whether no visit before was to the same group."""
        return (visit == 0) | (self.group[jnp.maximum(visit - 1, 0)] != self.group[visit])

    def last_of_group(self, visit: Any, count: Any) -> Any:
        """Whether no visit after, of `count` in all, is to the same group."""
        return (visit == count - 1) | (self.group[jnp.minimum(visit + 1, count - 1)] != self.group[visit])

    def bounds(self, visit: Any, tile_rows: int) -> tuple[Any, Any]:
        """Which rows of the visit's tile are its group's; none if the first bound is no less than the second."""
        group, first = self.group[visit], self.tile(visit) * tile_rows
        low, high = (jnp.clip(row[group] - first, 0, tile_rows) for row in (self.start, self.end))
        return low, high


def most_visits(rows: int, groups: int, tile_rows: int) -> int:
    """The most visits there can be: every tile once, and once more for each group."""
    return -(-rows // tile_rows) + groups


def fits_scalar_memory(rows: int, groups: int, tile_rows: int) -> bool:
    """Whether the list of visits can be prefetched."""
    return 4 * most_visits(rows, groups, tile_rows) + 12 * groups <= SCALAR_BYTES


def visits_of(
    groups: Groups, rows: int, tile_rows: int, *, every_group: bool, every_tile: bool
) -> tuple[Visits, Int[Array, ""]]:
    """Lists the visits to all tiles that hold rows of groups.

    Args:
      groups: the groups, at least one.
      rows: M, at least 1.
      tile_rows: rows in a tile, a power of two.
      every_group: whether empty groups are visited too, once each, to write their zeros.
      every_tile: whether tiles without a row of any group are visited too: by the last group before them, or of
        their model, which has no rows there.

    Returns:
      The visits, and how many there are, at least one.
    """
    sizes = groups.sizes.astype(jnp.int32)
    tiles, number, member_rows = -(-rows // tile_rows), sizes.shape[0], rows // groups.members
    start = groups.starts(rows).astype(jnp.int32)
    end = start + sizes
    stop = end
    if every_tile:  # The last group of each model goes on to the end of the model's rows.
        ends = member_rows * jnp.arange(1, groups.members + 1, dtype=jnp.int32)
        stop = end.reshape(groups.members, -1).at[:, -1].set(ends).reshape(-1)
    first = jnp.minimum(start // tile_rows, tiles - 1)
    count = jnp.where(stop > start, (stop - 1) // tile_rows - first + 1, int(every_group))
    past = jnp.cumsum(count, dtype=jnp.int32)
    # A comparison of all with all, V x G of them, is vector work; a search or a scatter goes one by one. Which takes
    # less time on a TPU has not been measured.
    order = jnp.arange(most_visits(rows, number, tile_rows), dtype=jnp.int32)
    group = jnp.searchsorted(past, order, side="right", method="compare_all").astype(jnp.int32)
    return Visits(jnp.minimum(group, number - 1), first - (past - count), start, end), past[-1]
