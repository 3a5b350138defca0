"""Which rows belong to which group: what every implementation is told beside its arrays."""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Groups:
    """Groups of rows, in order.

    The rows of one model lie one group after another from its first row on; what is left at the end, its tail,
    belongs to none. `members` models that `jax.vmap` has folded into one call lie one after another, each with
    M / members rows and G / members groups, so that tails lie between groups too.

    Attributes:
      sizes: rows of each group, [G]; whole numbers of at least 0.
      members: models folded together.
      alignment: every start and size is a multiple of this, and so is M / members.
    """

    sizes: Int[Array, " G"]
    members: int = field(default=1, metadata={"static": True})
    alignment: int = field(default=1, metadata={"static": True})

    def starts(self, rows: int) -> Int[Array, " G"]:
        """The first row of each group, of `rows` rows in all; an empty group starts where the next one does."""
        sizes = self.sizes.reshape(self.members, -1)
        first = jnp.arange(self.members, dtype=sizes.dtype) * (rows // self.members)
        return (jnp.cumsum(sizes, axis=1) - sizes + first[:, None]).reshape(-1)

    def inside(self, rows: int) -> Bool[Array, " M"]:
        """Whether each row belongs to a group."""
        used = self.sizes.reshape(self.members, -1).sum(1, dtype=self.sizes.dtype)
        return (jnp.arange(rows // self.members)[None] < used[:, None]).reshape(-1)

    def select(self, x: Array) -> Array:
        """`x`, [M, ...], with zeros in rows of no group. It selects: NaN times zero would be NaN."""
        inside = self.inside(x.shape[0]).reshape(-1, *(1,) * (x.ndim - 1))
        return jnp.where(inside, x, jnp.zeros((), x.dtype))

    def without_holes(self, rows: int) -> "Groups":
        """The same groups as one model's, each tail but the last given to the group before it.

        For implementations that know one model only: they want `select`ed rows, whose products are zero.
        """
        if self.members == 1:
            return self
        sizes = self.sizes.reshape(self.members, -1)
        tails = (rows // self.members - sizes.sum(1, dtype=sizes.dtype)).at[-1].set(0)
        return replace(self, sizes=sizes.at[:, -1].add(tails).reshape(-1), members=1)

    def fold(self, layouts: int) -> "Groups":
        """With `sizes` of so many layouts one after another: those of as many times more members."""
        return replace(self, members=layouts * self.members)

    def merge(self, layouts: int, rows: int) -> tuple["Groups", Int[Array, " M"], Int[Array, " M"]]:
        """With `sizes` of so many layouts one after another: groups g of which each holds the rows of all groups g.

        Args:
          layouts: how many; each of `members` models.
          rows: of all layouts, M.

        Returns:
          As many groups as one layout has; for each of their rows its place among the layouts' rows; and the
          other way round.
        """
        sizes = self.sizes.reshape(layouts, self.members, -1)
        tails = rows // (layouts * self.members) - sizes.sum(2, keepdims=True, dtype=sizes.dtype)
        apart = jnp.concatenate([sizes, tails], 2)  # a tail is one more group
        merged = apart.transpose(1, 2, 0)
        first = _starts(apart).transpose(1, 2, 0)

        def places(moves: Array, lengths: Array) -> Array:
            moved = jnp.repeat(moves.reshape(-1), lengths.reshape(-1), total_repeat_length=rows)
            return jnp.arange(rows, dtype=moved.dtype) + moved

        groups = replace(self, sizes=merged[:, :-1].sum(2, dtype=sizes.dtype).reshape(-1))
        to = _starts(merged)
        return groups, places(first - to, merged), places((to - first).transpose(2, 0, 1), apart)


def _starts(lengths: Array) -> Array:
    """Where parts of `lengths` begin that lie one after another."""
    return (jnp.cumsum(lengths) - lengths.reshape(-1)).reshape(lengths.shape)
