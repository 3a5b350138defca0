"""Bringing tokens to the devices that have their experts, and outputs back, over the mesh's expert axis."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from slicedice.moe.routing import Assignment
from slicedice.parallel.mesh import size
from slicedice.parallel.table import EXPERT

Apply = Callable[[Float[Array, "T D"], Assignment, int, int | None], tuple[Float[Array, "T D"], Int[Array, ""]]]
"""Experts of one device on the assignments kept: of tokens, assignment, experts here, and assignments to have room for;
returns outputs, and how many assignments found no room."""


def by_gathering(
    apply: Apply, x: Float[Array, "T D"], assignment: Assignment, n: int, slack: float | None
) -> tuple[Float[Array, "T D"], Int[Array, ""]]:
    """Every device of the axis sees the tokens of all, adds up what its experts make of them, and keeps its share of
    the sum over devices.

    A token travels once to each device, however many experts it has: of the ways there are the least at fine
    granularity, where k is large.

    Args:
      apply: this device's experts, ceil(n / devices) of them.
      x: this device's tokens.
      assignment: of these, to all n experts.
      n: experts.
      slack: assignments that a device has room for, over their mean; None for all.

    Returns:
      Outputs of this device's tokens, and how many assignments to its experts found no room.
    """
    devices = size(EXPERT)
    own = -(-n // devices)
    # In two bytes if they will do: for k experts a token, what is gathered beside the token itself is k of these and
    # k weights.
    experts = jnp.where(assignment.kept, assignment.experts, -1).astype(jnp.int16 if n < 2**15 else jnp.int32)
    x, experts, weights = (jax.lax.all_gather(part, EXPERT, tiled=True) for part in (x, experts, assignment.weights))
    experts = experts.astype(jnp.int32) - own * jax.lax.axis_index(EXPERT)
    here = (experts >= 0) & (experts < own)
    room = None if slack is None else int(slack * -(-experts.size // devices))
    output, lost = apply(x, Assignment(jnp.where(here, experts, 0), weights, here), own, room)
    return jax.lax.psum_scatter(output, EXPERT, tiled=True), lost
