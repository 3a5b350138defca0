"""All tokens to all devices of the mesh's expert axis, and their shares of outputs back.

Every device of the axis sees the tokens of all, adds up what its own experts make of them, and keeps its share of the
sum over devices. A token travels once to each device, however many experts it has: the cheaper way at
fine granularity, where k is large (`sending` is the other). Without the axis nothing moves.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from slicedice.kernels.platform import platform
from slicedice.moe.routing import Assignment
from slicedice.parallel.collectives import all_gather, psum_scatter
from slicedice.parallel.mesh import size
from slicedice.parallel.table import EXPERT

EXCHANGED = "exchanged"
"""What comes back is called for `jax.checkpoint`: it would take a transfer to have it again."""


def to_all(x: Float[Array, "T D"]) -> Float[Array, "A D"]:
    """The tokens of all devices of the axis."""
    return all_gather(x, EXPERT) if size(EXPERT) > 1 else x


def back(output: Float[Array, "A D"]) -> Float[Array, "T D"]:
    """This device's share of the sum over devices."""
    if size(EXPERT) == 1:
        return output
    return checkpoint_name(psum_scatter(output, EXPERT), EXCHANGED)


def is_cheaper(k: int) -> bool:
    """Whether this is the way for k experts a token: where it takes fewer bytes, or the platform has no other."""
    return k >= size(EXPERT) or platform() == "cpu"


def own_share(assignment: Assignment, n: int, slack: float | None) -> tuple[Assignment, int, int | None]:
    """What this device's experts are sent.

    Args:
      assignment: of this device's tokens, to all n experts.
      n: experts.
      slack: assignments that a device has room for, over their mean; None for all.

    Returns:
      The assignments of all devices' tokens, kept where they are to this device's experts, which count from 0; how many
      experts it has, ceil(n / devices); and how many assignments there has to be room for, None for all.
    """
    devices = size(EXPERT)
    if devices == 1:
        return assignment, n, None
    own = -(-n // devices)
    # In two bytes if they will do: beside a token, each of its experts sends an index and a weight.
    experts = jnp.where(assignment.kept, assignment.experts, -1).astype(jnp.int16 if n < 2**15 else jnp.int32)
    experts, weights = (all_gather(part, EXPERT) for part in (experts, assignment.weights))
    experts = experts.astype(jnp.int32) - own * jax.lax.axis_index(EXPERT)
    here = (experts >= 0) & (experts < own)
    room = None if slack is None else int(slack * -(-experts.size // devices))
    return Assignment(jnp.where(here, experts, 0), weights, here), own, room
