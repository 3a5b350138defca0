"""The public grouped matmul and its transposed companion, each the other's gradient.

Called gmm and tgmm in the field: rows times their group's matrix, and sums of outer products of a group's rows.
This module holds the contract (what is checked, what dtypes come out, rows of no group, vmap); the arithmetic
is an implementation's. It never falls back to a dense product.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from slicedice.kernels.groups import Groups
from slicedice.kernels.implementations import choose, load
from slicedice.kernels.varying import refuse_sharded, vary_as

DTYPES = jnp.bfloat16, jnp.float32
"""Of operands and results."""


def grouped_matmul(
    lhs: Float[Array, "M K"],
    rhs: Float[Array, "G K N"],
    group_sizes: Int[Array | np.ndarray, " G"] | Sequence[int],
    *,
    transpose_rhs: bool = False,
    preferred_element_type: jax.typing.DTypeLike | None = None,
    implementation: str = "",
    alignment: int = 1,
) -> Float[Array, "M N"]:
    """Multiplies each row of `lhs` with the matrix of its group.

    Rows are sorted by group: the first `group_sizes[0]` belong to group 0, and so on. Rows past
    `sum(group_sizes)` may hold anything, NaN included: their output and gradient are zero, and no weight
    gradient sees them. Empty groups get zero weight gradients. Products accumulate in float32.

    `jax.vmap` makes one call of more groups. Where it does not map `rhs`, one call of as many groups: rows are sorted
    by group over all that is mapped, and matrices not copied; the weight gradient is still made for each, then summed.

    Args:
      lhs: rows, [M, K], bfloat16 or float32, as all operands.
      rhs: one matrix for each group, [G, K, N], or [G, N, K] with `transpose_rhs`.
      group_sizes: whole numbers, [G], of JAX, NumPy or a list.
      transpose_rhs: whether each matrix is multiplied transposed.
      preferred_element_type: of the result, bfloat16 or float32; that of `lhs` if not given.
      implementation: a name from `IMPLEMENTATIONS`; "" chooses by platform.
      alignment: a promise that M and every group size are multiples of this.

    Returns:
      [M, N].

    Raises:
      ValueError: unknown implementation, shapes that do not fit, other dtypes, arrays sharded over explicit axes of
        a mesh outside of `jax.shard_map`, or concrete `group_sizes` that are negative, unaligned or sum past M.
    """
    sizes = as_array(group_sizes)
    depth = rhs.shape[2 if transpose_rhs else 1] if rhs.ndim == 3 else -1
    if lhs.ndim != 2 or lhs.shape[1] != depth or sizes.shape != rhs.shape[:1]:
        form = "[G, N, K]" if transpose_rhs else "[G, K, N]"
        raise ValueError(
            f"lhs {lhs.shape}, rhs {rhs.shape} and group_sizes {sizes.shape} do not fit [M, K], {form}, [G]"
        )
    how = _How(choose(implementation), _result_dtype(preferred_element_type, lhs), transpose_rhs)
    return _gmm(how, *checked(sizes, alignment, lhs=lhs, rhs=rhs))


def transposed_grouped_matmul(
    lhs: Float[Array, "M K"],
    rhs: Float[Array, "M N"],
    group_sizes: Int[Array | np.ndarray, " G"] | Sequence[int],
    *,
    preferred_element_type: jax.typing.DTypeLike | None = None,
    implementation: str = "",
    alignment: int = 1,
) -> Float[Array, "G K N"]:
    """Sums, for each group, the outer products of its rows of `lhs` and `rhs`: lhs_g^T rhs_g.

    The weight gradient of `grouped_matmul`, under the same contract: rows past `sum(group_sizes)` are never seen
    and have zero gradient, the sum of an empty group is exactly zero.

    Args:
      lhs: rows, [M, K], bfloat16 or float32, as all operands.
      rhs: rows, [M, N].
      group_sizes: whole numbers, [G], of JAX, NumPy or a list.
      preferred_element_type: of the result, bfloat16 or float32; that of `lhs` if not given.
      implementation: a name from `IMPLEMENTATIONS`; "" chooses by platform.
      alignment: a promise that M and every group size are multiples of this.

    Returns:
      [G, K, N].

    Raises:
      ValueError: as `grouped_matmul`.
    """
    sizes = as_array(group_sizes)
    if lhs.ndim != 2 or rhs.ndim != 2 or lhs.shape[0] != rhs.shape[0] or sizes.ndim != 1:
        raise ValueError(
            f"lhs {lhs.shape}, rhs {rhs.shape} and group_sizes {sizes.shape} do not fit [M, K], [M, N], [G]"
        )
    how = _How(choose(implementation), _result_dtype(preferred_element_type, lhs))
    return _tgmm(how, *checked(sizes, alignment, lhs=lhs, rhs=rhs))


def as_array(group_sizes: Int[Array | np.ndarray, " G"] | Sequence[int]) -> Any:
    """Group sizes, which may be a list."""
    return group_sizes if hasattr(group_sizes, "shape") else np.asarray(group_sizes)


def checked(group_sizes: Int[Array, " G"], alignment: int, **operands: Array) -> tuple[Any, ...]:
    """The operands, of which the first has M rows, and their `Groups`.

    Raises:
      ValueError: an operand is neither bfloat16 nor float32, an array is sharded over explicit mesh axes, or sizes are
        not whole numbers or, where they are concrete, negative, unaligned or sum past M.
    """
    for name, x in operands.items():
        if jax.typeof(x).dtype not in DTYPES:
            raise ValueError(f"{name} {jax.typeof(x).str_short()} has to be bfloat16 or float32")
    for name, x in {**operands, "group_sizes": group_sizes}.items():
        refuse_sharded(name, x)
    rows = next(iter(operands.values())).shape[0]
    arrays = *operands.values(), _checked_sizes(group_sizes, rows, alignment)
    *varying, sizes = (vary_as(x, *arrays) for x in arrays)
    return *varying, Groups(sizes, alignment=alignment)


def _checked_sizes(group_sizes: Int[Array, " G"], rows: int, alignment: int) -> Int[Array, " G"]:
    if not jnp.issubdtype(group_sizes.dtype, jnp.integer):
        raise ValueError(f"group_sizes {jax.typeof(group_sizes).str_short()} have to be whole numbers, [G]")
    if alignment < 1:
        raise ValueError(f"alignment = {alignment} has to be at least 1")
    if not isinstance(group_sizes, Tracer):
        sizes = np.asarray(group_sizes, np.int64)
        if (sizes < 0).any() or sizes.sum() > rows:
            raise ValueError(
                f"group_sizes {sizes} have to be at least 0 and sum to at most M = {rows}: the least is "
                f"{sizes.min()}, the sum {sizes.sum()}"
            )
        unaligned = np.flatnonzero(sizes % alignment)
        if unaligned.size or rows % alignment:
            which = f": {sizes[unaligned[0]]} of group {unaligned[0]} is not" if unaligned.size else ""
            raise ValueError(
                f"group_sizes {sizes} and M = {rows} have to be multiples of alignment = {alignment}{which}"
            )
    return jnp.asarray(group_sizes, jnp.int32)


def _result_dtype(preferred: jax.typing.DTypeLike | None, lhs: Array) -> np.dtype:
    dtype = np.dtype(jax.typeof(lhs).dtype if preferred is None else preferred)
    if preferred is not None and dtype not in DTYPES:
        raise ValueError(f"preferred_element_type = {dtype} has to be bfloat16 or float32")
    return dtype


class _How(NamedTuple):
    implementation: str
    dtype: np.dtype  # of the result
    transpose_rhs: bool = False


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gmm(how: _How, lhs: Array, rhs: Array, groups: Groups) -> Array:
    implementation = load(how.implementation)
    lhs = groups.select(lhs) if implementation.NEEDS_ZEROS else lhs
    gmm = functools.partial(implementation.gmm, transpose_rhs=how.transpose_rhs, dtype=how.dtype)
    return folded(gmm, matrices=(1,))(lhs, rhs, groups)


def _gmm_forward(how: _How, lhs: Array, rhs: Array, groups: Groups):
    return _gmm(how, lhs, rhs, groups), (lhs, rhs, groups)


def _gmm_backward(how: _How, residuals, grad: Array):
    lhs, rhs, groups = residuals
    dlhs = _gmm(how._replace(dtype=lhs.dtype, transpose_rhs=not how.transpose_rhs), grad, rhs, groups)
    outer = (grad, lhs) if how.transpose_rhs else (lhs, grad)
    return dlhs, _tgmm(_How(how.implementation, rhs.dtype), *outer, groups), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tgmm(how: _How, lhs: Array, rhs: Array, groups: Groups) -> Array:
    implementation = load(how.implementation)
    if implementation.NEEDS_ZEROS:
        lhs, rhs = groups.select(lhs), groups.select(rhs)
    return folded(functools.partial(implementation.tgmm, dtype=how.dtype))(lhs, rhs, groups)


def _tgmm_forward(how: _How, lhs: Array, rhs: Array, groups: Groups):
    return _tgmm(how, lhs, rhs, groups), (lhs, rhs, groups)


def _tgmm_backward(how: _How, residuals, grad: Array):
    lhs, rhs, groups = residuals
    dlhs = _gmm(_How(how.implementation, lhs.dtype, transpose_rhs=True), rhs, grad, groups)
    return dlhs, _gmm(_How(how.implementation, rhs.dtype), lhs, grad, groups), None


_gmm.defvjp(_gmm_forward, _gmm_backward)
_tgmm.defvjp(_tgmm_forward, _tgmm_backward)


class Products(NamedTuple):
    """The products of an implementation, such that JAX can differentiate them any number of times, and map them."""

    implementation: str

    def gmm(self, lhs: Array, rhs: Array, groups: Groups, *, transpose_rhs: bool, dtype: jax.typing.DTypeLike) -> Array:
        """As `Implementation.gmm`."""
        return _gmm(_How(self.implementation, np.dtype(dtype), transpose_rhs), lhs, rhs, groups)

    def tgmm(self, lhs: Array, rhs: Array, groups: Groups, *, dtype: jax.typing.DTypeLike) -> Array:
        """As `Implementation.tgmm`."""
        return _tgmm(_How(self.implementation, np.dtype(dtype)), lhs, rhs, groups)


def folded(
    function: Callable[..., Any], matrices: tuple[int, ...] = (), shared: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """`function`, whose first axes are all rows or groups, such that `jax.vmap` makes one call with longer axes.

    A loop over independent models would leave a device idle beside each one's small groups; more groups in one
    call are what the kernels are made for. Matrices that are not mapped are one model's for all, and not copied.

    Args:
      function: of arrays and one `Groups`, in any order; returns arrays.
      matrices: places of the arguments that are one matrix a group.
      shared: what is mapped instead where no matrices are. By default `function` gets groups that hold everybody's
        rows, which is right if all that it returns is rows.
    """
    single = jax.custom_batching.custom_vmap(function)

    @single.def_vmap
    def _fold(size: int, batched, *args):
        for x in jax.tree.leaves(args):
            refuse_sharded("a mapped array,", x)
        is_shared = bool(matrices) and not any(batched[i] for i in matrices)
        if is_shared and shared is not None:
            out = jax.vmap(shared, jax.tree.map(lambda is_batched: 0 if is_batched else None, batched))(*args)
            return out, jax.tree.map(lambda _: True, out)

        def fold_axes(x: Array, is_batched: bool) -> Array:
            x = x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            return x.reshape(size * x.shape[1], *x.shape[2:])

        kept = matrices if is_shared else ()
        args = [x if i in kept else jax.tree.map(fold_axes, x, batched[i]) for i, x in enumerate(args)]
        at = next(i for i, x in enumerate(args) if isinstance(x, Groups))
        if is_shared:
            rows = [i for i in range(len(args)) if i not in (at, *matrices)]
            args[at], places, back = args[at].merge(size, args[rows[0]].shape[0])
            for i in rows:
                args[i] = args[i][places]
            out = jax.tree.map(lambda x: x[back], single(*args))
        else:
            args[at] = args[at].fold(size)
            out = single(*args)
        out = jax.tree.map(lambda x: x.reshape(size, x.shape[0] // size, *x.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return single
