"""The mesh of devices that one run trains on, and what code inside of `jax.shard_map` sees of it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from slicedice.parallel.table import AXES, REPLICA


def make_mesh(shape: Mapping[str, int], devices: Sequence[Any]) -> Mesh | None:
    """Arranges the first of `devices`, neighbours along the innermost axis.

    Args:
      shape: size of each of `AXES`; those of size 1 are no axes of the mesh.
      devices: at least as many as the sizes' product; over several slices, as many slices as replicas.

    Returns:
      The mesh; None for one device.

    Raises:
      ValueError: there are too few devices, or slices do not fit replicas.
    """
    sizes = {name: shape[name] for name in AXES if shape[name] > 1}
    if not sizes:
        return None
    count = math.prod(sizes.values())
    if len(devices) < count:
        words = " ".join(f"{name}={length}" for name, length in sizes.items())
        raise ValueError(f"the mesh {words} takes {count} devices, and there are {len(devices)}")
    devices = devices[:count]
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1:
        if sizes.get(REPLICA) != slices:
            raise ValueError(f"{slices} slices of a pod take a mesh with replica={slices}")
        inner = [1, *(length for name, length in sizes.items() if name != REPLICA)]
        outer = [slices] + [1] * (len(inner) - 1)
        placed = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    elif devices[0].platform == "tpu":
        placed = mesh_utils.create_device_mesh(tuple(sizes.values()), devices, allow_split_physical_axes=True)
    else:
        placed = np.asarray(devices).reshape(tuple(sizes.values()))
    return Mesh(placed, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def batch_sharding(where: Mesh | Any) -> jax.sharding.Sharding:
    """How a batch's sequences, its leading axis, lie on a mesh, in order over all axes, or on one device."""
    if isinstance(where, Mesh):
        return NamedSharding(where, PartitionSpec(where.axis_names))
    return jax.sharding.SingleDeviceSharding(where)


def axes() -> tuple[str, ...]:
    """The axes of the mesh around this code, outermost first; none outside of `jax.shard_map`."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(name for name in AXES if name in manual)


def size(name: str) -> int:
    """The size of an axis of the mesh around this code; 1 for one that is not there."""
    return jax.lax.axis_size(name) if name in axes() else 1
