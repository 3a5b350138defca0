"""Which mesh axes shard which logical axis of a parameter: the one table.

A parameter names its logical axes and their sizes as `axes`, as in (("experts", 8), ("d_model", 64), ("width", 32)).
"""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from slicedice.parallel.mesh import DATA, EXPERT

LogicalAxes = tuple[tuple[str, int], ...]

TABLE = {
    "experts": (EXPERT,),
    "vocabulary": (DATA, EXPERT),
    "d_model": (DATA, EXPERT),
    "width": (DATA, EXPERT),
}
"""Mesh axes that a logical axis is sharded over. Each mesh axis serves one logical axis, the first here whose size it
divides; what it divides none of, it leaves whole on each of its devices. Logical axes that are not here stay whole."""


def partition(axes: LogicalAxes, mesh: Mapping[str, int]) -> tuple[tuple[str, ...], ...]:
    """The mesh axes that shard each of a parameter's axes.

    Args:
      axes: logical axes and their sizes.
      mesh: sizes of mesh axes.
    """
    free = {name for name, size in mesh.items() if size > 1}
    over: list[tuple[str, ...]] = [()] * len(axes)
    for logical, candidates in TABLE.items():
        for place, (name, size) in enumerate(axes):
            if name != logical:
                continue
            parts = 1
            for mesh_axis in candidates:
                if mesh_axis in free and size % (parts * mesh[mesh_axis]) == 0:
                    over[place] += (mesh_axis,)
                    parts *= mesh[mesh_axis]
                    free.remove(mesh_axis)
    return tuple(over)


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


def shardings(tree: Any, mesh: Mesh | None) -> Any:
    """`tree` with the sharding of each array; without a mesh, this process's first device."""
    if mesh is None:
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return jax.tree.map(lambda _: here, tree)
    specs = partition_specs(tree, mesh)
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
