"""Gathering over an axis of the mesh, and the scattered sums that are its transpose.

Over an axis that has all devices of a slice the TPU's compiler makes of both one sum that every device has, twice the
bytes and a whole array in float32. So such an axis is gone along in two stages, which add up to the same bytes.
"""

import math

import jax
from jaxtyping import Array

from slicedice.parallel.mesh import axes, size
from slicedice.parallel.table import REPLICA

Groups = list[list[int]]


def all_gather(x: Array, name: str, axis: int = 0) -> Array:
    """The parts of all devices along `axis`, in their order."""
    for groups in _stages(name):
        x = jax.lax.all_gather(x, name, axis_index_groups=groups, axis=axis, tiled=True)
    return x


def psum_scatter(x: Array, name: str, axis: int = 0) -> Array:
    """The sum over devices, of which each has its own part along `axis`."""
    for groups in reversed(_stages(name)):
        x = jax.lax.psum_scatter(x, name, axis_index_groups=groups, scatter_dimension=axis, tiled=True)
    return x


def _stages(name: str) -> list[Groups | None]:
    """Groups of devices of each stage of a gathering: neighbours first, and then their like. None: all together."""
    count = size(name)
    alone = all(size(other) == 1 for other in axes() if other not in (name, REPLICA))
    inner = max(part for part in range(1, math.isqrt(count) + 1) if count % part == 0)
    if not alone or inner == 1:
        return [None]
    neighbours = [list(range(first, first + inner)) for first in range(0, count, inner)]
    return [neighbours, [list(like) for like in zip(*neighbours, strict=True)]]
