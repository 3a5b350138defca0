"""Each token to the devices of its own experts, and outputs back: `ragged_all_to_all` over the mesh's expert axis.

Bytes grow with k, and do not with the axis: below as many experts a token as there are devices, the cheaper way.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from slicedice.kernels.platform import platform
from slicedice.parallel.mesh import size
from slicedice.parallel.table import EXPERT


class Chunks(NamedTuple):
    """For each device of the axis: where its chunk begins here and how long it is; where what comes from it goes.

    begins, lengths: of what is sent to each. at: where it begins on that device. arriving: lengths of what comes.
    """

    begins: Int[Array, " P"]
    lengths: Int[Array, " P"]
    at: Int[Array, " P"]
    arriving: Int[Array, " P"]


class Letters(NamedTuple):
    """How rows sorted by expert reach the devices of their experts.

    there: chunks of the way out. back: of the way back.
    experts: of each row that arrives, counted from this device's first. arrived: whether a row is there at all.
    lost: rows that found no room here.
    """

    there: Chunks
    back: Chunks
    experts: Int[Array, " R"]
    arrived: Bool[Array, " R"]
    lost: Int[Array, ""]


def letters(counts: Int[Array, " E"], room: int) -> Letters:
    """Addresses rows.

    Args:
      counts: of this device's rows for each expert, in order; a multiple of the axis.
      room: rows that a device takes.
    """
    peers, me = size(EXPERT), jax.lax.axis_index(EXPERT)
    table = jax.lax.all_gather(counts, EXPERT).reshape(peers, peers, -1)  # from, to, expert
    lengths = table.sum(2)
    begins = jnp.cumsum(lengths, axis=1) - lengths
    at = jnp.cumsum(lengths, axis=0) - lengths
    taken = jnp.clip(room - at, 0, lengths)
    at = jnp.minimum(at, room)
    own = table[:, me].reshape(-1)
    experts = jnp.tile(jnp.arange(table.shape[2], dtype=jnp.int32), peers)
    return Letters(
        there=Chunks(begins[me], taken[me], at[me], taken[:, me]),
        back=Chunks(at[:, me], taken[:, me], begins[:, me], taken[me]),
        experts=jnp.repeat(experts, own, total_repeat_length=room),
        arrived=jnp.arange(room) < taken[:, me].sum(),
        lost=(lengths - taken)[:, me].sum(),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def send(rows: Float[Array, "M D"], room: int, there: Chunks, back: Chunks) -> Float[Array, "R D"]:
    """Rows that other devices sent here, one device's after another's; zeros where none came.

    Args:
      rows: of which `there` names chunks.
      room: R.
      there: of the way.
      back: of the way back, which gradients take.
    """
    del back
    return _move(rows, room, there)


def _send_forward(rows, room: int, there: Chunks, back: Chunks):
    return _move(rows, room, there), (back, rows.shape[0])


def _send_backward(room: int, residuals, grad):
    del room
    back, rows = residuals
    return _move(grad, rows, back), None, None


send.defvjp(_send_forward, _send_backward)


def _move(rows: Float[Array, "M D"], room: int, chunks: Chunks) -> Float[Array, "R D"]:
    empty = jnp.zeros((room, rows.shape[1]), rows.dtype)
    if platform() != "cpu":
        return jax.lax.ragged_all_to_all(rows, empty, *chunks, axis_name=EXPERT)
    # XLA has it on accelerators alone. Here everything goes to everyone, for tests.
    me = jax.lax.axis_index(EXPERT)
    everything = jax.lax.all_gather(rows, EXPERT)
    begins, at = (jax.lax.all_gather(part, EXPERT)[:, me] for part in (chunks.begins, chunks.at))
    for peer in range(size(EXPERT)):
        place = jnp.arange(room) - at[peer]
        here = (place >= 0) & (place < chunks.arriving[peer])
        empty = jnp.where(here[:, None], everything[peer].at[begins[peer] + place].get(mode="clip"), empty)
    return empty
