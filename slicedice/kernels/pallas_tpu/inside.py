"""What the kernels of this package say in the same words: products, masks, and the shape of a result."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike


def dot(x: Any, y: Any, x_axis: int, y_axis: int, dtype: DTypeLike) -> Any:
    """The product of two matrices over an axis of each, multiplied in `dtype`, summed in float32."""
    exact = jnp.dtype(dtype) == jnp.float32
    return jax.lax.dot_general(
        x.astype(dtype),
        y.astype(dtype),
        (((x_axis,), (y_axis,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def row_mask(shape: tuple[int, int], low: Any, high: Any) -> Any:
    """Whether each row of a block is one of [low, high)."""
    row = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    return (row >= low) & (row < high)


def select(mask: Any, x: Any) -> Any:
    """`x` where the mask holds, else zeros. It selects: NaN times zero would be NaN."""
    return jnp.where(mask, x, jnp.zeros((), x.dtype))


def result(shape: tuple[int, ...], dtype: DTypeLike, *inputs: jax.Array) -> jax.ShapeDtypeStruct:
    """What a kernel returns; under `shard_map` it varies over every mesh axis that an input varies over."""
    varying = frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in inputs))
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.sharding.ManualAxisType(varying=varying))
