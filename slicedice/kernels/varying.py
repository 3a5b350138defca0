"""What an array's type says of a mesh: over which axes it varies under `jax.shard_map`, and how it is sharded.

JAX works it out for its own operations, and has to be told of foreign ones.
"""

import jax
from jax.typing import DTypeLike
from jaxtyping import Array


def vary_as(x: Array, *others: Array) -> Array:
    """`x`, typed as varying over every mesh axis that one of `others` varies over.

    The gradient of what was the same on every device is then summed over devices, as it has to be.
    """
    missing = tuple(_axes(*others) - _axes(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def result(shape: tuple[int, ...], dtype: DTypeLike, *inputs: Array) -> jax.ShapeDtypeStruct:
    """What a kernel on `inputs` returns."""
    varying = jax.sharding.ManualAxisType(varying=_axes(*inputs))
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=varying)


def refuse_sharded(name: str, x: Array) -> None:
    """Refuses what is typed as sharded: over explicit axes of a mesh, outside of `jax.shard_map` over them.

    Raises:
      ValueError: `x` is sharded.
    """
    if any(jax.typeof(x).sharding.spec):
        raise ValueError(
            f"{name} {jax.typeof(x).str_short()} is sharded over explicit axes of a mesh, which says nothing of each "
            "device's groups: call inside of jax.shard_map, or of jax.sharding.auto_axes, over these axes"
        )


def _axes(*arrays: Array) -> frozenset[str]:
    return frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays))
