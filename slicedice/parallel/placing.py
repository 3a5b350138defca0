"""Where arrays lie on a mesh, and how they come there."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from slicedice.parallel.table import partition


def partition_specs(tree: Any, mesh: Mesh) -> Any:
    """`tree` with a `PartitionSpec` for each array: by the table if it is a variable that names its axes, else whole.

    Axes in front of those that a variable names, as that of layers, stay whole.
    """

    def spec(variable: Any) -> Any:
        if not isinstance(variable, nnx.Variable):
            return PartitionSpec()
        named = variable.get_metadata().get("axes")
        if named is None:
            return variable.replace(PartitionSpec())
        leading = [None] * (len(variable.shape) - len(named))
        return variable.replace(PartitionSpec(*leading, *(over or None for over in partition(named, mesh.shape))))

    return jax.tree.map(spec, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def shardings(tree: Any, where: Mesh | Any) -> Any:
    """`tree` with the sharding of each array on a mesh, or on one device."""
    if not isinstance(where, Mesh):
        return jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(where), tree)
    specs = partition_specs(tree, where)
    return jax.tree.map(lambda spec: NamedSharding(where, spec), specs, is_leaf=lambda x: isinstance(x, PartitionSpec))


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh that arrays lie on; None if on one device."""
    places = (leaf.sharding for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array))
    meshes: set[Any] = {place.mesh for place in places if isinstance(place, NamedSharding)}
    return meshes.pop() if meshes else None


def place(rows: Callable[[slice], np.ndarray], shape: tuple[int, ...], sharding: jax.sharding.Sharding) -> jax.Array:
    """An array whose first axis is spread over all devices; this process asks only for what its devices have.

    Args:
      rows: returns a slice of the first axis.
      shape: of the whole.
      sharding: see `batch_sharding`.
    """

    def read(index: Any) -> np.ndarray:
        return rows(slice(*index[0].indices(shape[0])))

    return jax.make_array_from_callback(shape, sharding, read)
