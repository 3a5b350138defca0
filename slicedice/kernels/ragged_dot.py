"""XLA's own grouped matmul. On CPU, and by reports on GPU too, it does every group for every row. It is here to
compare with, and never the path taken. A NaN in one group's matrix can reach the rows of another."""

import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from slicedice.kernels import composed
from slicedice.kernels.groups import Groups

NEEDS_ZEROS = True

_WEIGHT_GRADIENT = jax.lax.RaggedDotDimensionNumbers(
    dot_dimension_numbers=(([0], [0]), ([], [])), lhs_ragged_dimensions=[0], rhs_group_dimensions=[]
)
# By default GPUs and TPUs multiply float32 as if it had ten bits or seven.
_FLOAT32: Any = {"preferred_element_type": jnp.float32, "precision": jax.lax.Precision.HIGHEST}


def gmm(lhs: Array, rhs: Array, groups: Groups, *, transpose_rhs: bool, dtype: np.dtype) -> Array:
    """[M, K], [G, K, N] -> [M, N]; with `transpose_rhs`, of [G, N, K]."""
    rhs = rhs.swapaxes(1, 2) if transpose_rhs else rhs
    sizes = groups.without_holes(lhs.shape[0]).sizes
    out = jax.lax.ragged_dot(lhs, rhs, sizes, **_FLOAT32)
    # What the native lowerings leave in rows of no group is not defined.
    return groups.select(out).astype(dtype)


def tgmm(lhs: Array, rhs: Array, groups: Groups, *, dtype: np.dtype) -> Array:
    """[M, K], [M, N] -> [G, K, N]."""
    lhs, rhs = (x.astype(jnp.promote_types(lhs.dtype, rhs.dtype)) for x in (lhs, rhs))
    sizes = groups.without_holes(lhs.shape[0]).sizes
    return jax.lax.ragged_dot_general(lhs, rhs, sizes, _WEIGHT_GRADIENT, **_FLOAT32).astype(dtype)


ffn = functools.partial(composed.ffn, gmm)
ffn_backward = functools.partial(composed.ffn_backward, sys.modules[__name__])


def row_alignment(rows: int, groups: int) -> int:
    """Groups may begin anywhere."""
    del rows, groups
    return 1
