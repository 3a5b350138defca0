"""Several processes on one run: each reads its share, all decide alike, and the first one writes."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from slicedice.parallel.mesh import batch_sharding

PATIENCE_SECONDS = 60
"""Without a sign of life, after which a process counts as lost; the others then end."""


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Makes this process one of several; must come before JAX looks for devices.

    Args:
      coordinator: HOST:PORT of the first process; None, as with the rest, where JAX finds out from Slurm, Kubernetes
        or a TPU pod.
      processes: how many there are.
      process: which this is, from 0.
    """
    jax.distributed.initialize(coordinator, processes, process, heartbeat_timeout_seconds=PATIENCE_SECONDS)


def leads() -> bool:
    """Whether this is the first process, or the only one."""
    return jax.process_index() == 0


def greatest(number: int) -> int:
    """The greatest of all processes' numbers, so that all decide alike; each has to ask, at the same point."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.int32(number)).max())


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that arrays lie on; None if on one device."""
    places = (leaf.sharding for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array))
    meshes: set[Any] = {place.mesh for place in places if isinstance(place, NamedSharding)}
    return meshes.pop() if meshes else None


def place(rows: Callable[[slice], np.ndarray], shape: tuple[int, ...], mesh: Mesh | None) -> jax.Array:
    """An array whose first axis is spread over all devices; this process asks only for what its devices have.

    Args:
      rows: returns a slice of the first axis.
      shape: of the whole.
      mesh: see `batch_sharding`.
    """

    def read(index: Any) -> np.ndarray:
        return rows(slice(*index[0].indices(shape[0])))

    return jax.make_array_from_callback(shape, batch_sharding(mesh), read)
