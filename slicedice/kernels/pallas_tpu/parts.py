"""Calls for so many models that their list of visits would not fit scalar memory, a part of the models at a time."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

from slicedice.kernels.groups import Groups
from slicedice.kernels.pallas_tpu.tiles import LEAST_ROWS
from slicedice.kernels.pallas_tpu.visits import fits_scalar_memory

P = ParamSpec("P")
R = TypeVar("R")


def in_parts(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, called for as many models at a time as can be listed in tiles of any height.

    Args:
      function: of positional arrays whose first axis is all models' rows or groups, the first of them rows, and one
        `Groups`; returns such arrays. Options are passed on.
    """

    @functools.wraps(function)
    def parted(*arguments: P.args, **options: P.kwargs) -> R:
        given: Any = arguments
        groups = next(x for x in given if isinstance(x, Groups))
        members = groups.members
        rows, number = given[0].shape[0] // members, groups.sizes.shape[0] // members
        most = members
        while most > 1 and not fits_scalar_memory(rows * most, number * most, LEAST_ROWS):
            most -= 1
        if most == members:
            return function(*arguments, **options)
        results = []
        for first in range(0, members, most):
            count = min(most, members - first)

            def own(x: jax.Array, first: int = first, count: int = count) -> jax.Array:
                each = x.shape[0] // members
                return x[first * each : (first + count) * each]

            mine: Any = jax.tree.map(own, given)
            mine = (replace(x, members=count) if isinstance(x, Groups) else x for x in mine)
            results.append(function(*mine, **options))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *results)

    return parted
