"""Past one device: the mesh, the one table from logical axes to mesh axes, and what moves over it.

Every part of the model is written for one device's share. Run inside `jax.shard_map` it finds the mesh's axes around
it, and moves what it has to; on one device there are none, and nothing moves.
"""

from slicedice.parallel.gathering import GATHERED, gathered, local_experts
from slicedice.parallel.mesh import AXES, DATA, EXPERT, REPLICA, axes, batch_sharding, make_mesh, size
from slicedice.parallel.processes import greatest, join, leads, mesh_of, place
from slicedice.parallel.table import partition, partition_specs, shardings

__all__ = [
    "AXES",
    "DATA",
    "EXPERT",
    "GATHERED",
    "REPLICA",
    "axes",
    "batch_sharding",
    "gathered",
    "greatest",
    "join",
    "leads",
    "local_experts",
    "make_mesh",
    "mesh_of",
    "partition",
    "partition_specs",
    "place",
    "shardings",
    "size",
]
