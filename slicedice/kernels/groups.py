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
        used = self.sizes.reshape(self.members, -1).sum(1)
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
        tails = (rows // self.members - sizes.sum(1)).at[-1].set(0)
        return replace(self, sizes=sizes.at[:, -1].add(tails).reshape(-1), members=1)

    def fold(self, sizes: Int[Array, "B G"]) -> "Groups":
        """Those of B times as many members, whose sizes are `sizes`."""
        return replace(self, sizes=sizes.reshape(-1), members=sizes.shape[0] * self.members)
