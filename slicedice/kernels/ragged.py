"""XLA's own grouped matmul. Native on TPU and GPU; on CPU it does every group for every row, so it is the
reference in tests there and never the path taken."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

NEEDS_ZEROS = True

_WEIGHT_GRADIENT = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(([0], [0]), ([], [])), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
)


def gmm(lhs: Array, rhs: Array, group_sizes: Array, alignment: int, *, transpose_rhs: bool) -> Array:
    """[M, K], [G, K, N] -> [M, N] in float32; transposed, [M, N], [G, K, N] -> [M, K]."""
    del alignment  # groups may begin anywhere
    rhs = rhs.swapaxes(1, 2) if transpose_rhs else rhs
    out = jax.lax.ragged_dot(lhs, rhs, group_sizes, preferred_element_type=jnp.float32)
    # What the native lowerings leave in rows past the last group is not defined.
    return jnp.where((jnp.arange(lhs.shape[0]) < group_sizes.sum())[:, None], out, 0.0)


def tgmm(lhs: Array, grad: Array, group_sizes: Array, alignment: int) -> Array:
    """[M, K], [M, N] -> [G, K, N] in float32."""
    del alignment
    lhs, grad = (x.astype(jnp.promote_types(lhs.dtype, grad.dtype)) for x in (lhs, grad))
    return jax.lax.ragged_dot_general(lhs, grad, group_sizes, _WEIGHT_GRADIENT, preferred_element_type=jnp.float32)


def row_alignment(rows: int, groups: int) -> int:
    """Groups may begin anywhere."""
    del rows, groups
    return 1
