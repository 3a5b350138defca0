"""The axes of a mesh, and which of them shard which logical axis of a parameter: the one table.

A parameter names its logical axes and their sizes as `axes`, as in (("experts", 8), ("d_model", 64), ("width", 32)).
"""

from collections.abc import Mapping

REPLICA = "replica"
"""Copies of everything, across slices of a pod, between which only gradients travel."""

DATA = "data"
"""Parameters and optimizer state are sharded over it, and gathered for use (ZeRO, arXiv 1910.02054)."""

EXPERT = "expert"
"""Each of its devices has its own experts; tokens travel to them."""

AXES = (REPLICA, DATA, EXPERT)
"""From the slowest links to the fastest. Sequences are spread over all of them."""

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
