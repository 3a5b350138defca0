"""The one public grouped matmul, its gradients, and the choice of implementation.

Every implementation is a pair of functions on arrays: `gmm` (rows times their group's matrix) and `tgmm`
(the transposed companion that sums outer products of rows within a group). This module ties them with one
custom VJP and holds the contract on rows past the last group; it never falls back to a dense product.
"""

import functools
import logging
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from slicedice.kernels import blocks, native, ragged

log = logging.getLogger(__name__)


class Implementation(Protocol):
    """What a module of this room provides; see `blocks` for the reading of each argument."""

    @property
    def NEEDS_ZEROS(self) -> bool:
        """Whether rows past the last group have to come in as zeros; where not, they are never read."""
        ...

    def gmm(self, lhs: Array, rhs: Array, group_sizes: Array, alignment: int, *, transpose_rhs: bool) -> Array:
        """[M, K], [G, K, N] -> [M, N] in float32, or with `transpose_rhs`, [M, N], [G, K, N] -> [M, K].

        Rows of the result past the last group are zero.
        """
        ...

    def tgmm(self, lhs: Array, grad: Array, group_sizes: Array, alignment: int) -> Array:
        """[M, K], [M, N] -> [G, K, N] in float32."""
        ...

    def row_alignment(self, rows: int, groups: int) -> int:
        """The multiple of rows at which groups had best begin."""
        ...


IMPLEMENTATIONS: dict[str, Implementation] = {"native": native, "blocks": blocks, "ragged_dot": ragged}
"""By name: "native" is for CPUs with a C++ compiler, "blocks" costs FLOPs in proportion to rows everywhere,
"ragged_dot" is XLA's own, native on TPU and GPU and dense on CPU, where only tests should name it."""


class _Options(NamedTuple):
    implementation: str
    alignment: int
    dtype: np.dtype


@functools.cache
def choose(implementation: str = "") -> str:
    """Resolves the name of an implementation, "" by platform, and says once what was chosen.

    Raises:
      ValueError: there is no implementation of that name, or it cannot be used here.
    """
    if implementation and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation = {implementation!r}: choose one of {', '.join(IMPLEMENTATIONS)}")
    platform = jax.default_backend()
    if implementation == "native" and not (platform == "cpu" and native.available()):
        raise ValueError("implementation = 'native' needs the CPU and a C++ compiler; the log says what failed")
    name = implementation or ("ragged_dot" if platform != "cpu" else "native" if native.available() else "blocks")
    log.info("grouped matmul on %s: %s", platform, name)
    return name


def row_alignment(rows: int, groups: int, implementation: str = "") -> int:
    """The multiple of rows at which groups had best begin, for `rows` rows spread over `groups` groups.

    Whoever lays out the rows can spare the implementation a re-layout by starting every group at a multiple
    of this, filling up with rows of zero weight, and passing it on as `alignment`.
    """
    return IMPLEMENTATIONS[choose(implementation)].row_alignment(rows, groups)


def grouped_matmul(
    lhs: Float[Array, "M K"],
    rhs: Float[Array, "G K N"],
    group_sizes: Int[Array, " G"],
    *,
    preferred_element_type: jax.typing.DTypeLike | None = None,
    implementation: str = "",
    alignment: int = 1,
) -> Float[Array, "M N"]:
    """Multiplies each row of `lhs` with the matrix of its group.

    Rows are sorted by group: the first `group_sizes[0]` belong to group 0, and so on. Rows past
    `sum(group_sizes)` may hold anything, NaN included: their output and gradient are zero, and no weight
    gradient sees them. Empty groups get zero weight gradients. Products accumulate in float32.

    Args:
      lhs: rows, [M, K].
      rhs: one matrix for each group, [G, K, N].
      group_sizes: whole numbers, [G].
      preferred_element_type: of the result; that of `lhs` if not given.
      implementation: a name from `IMPLEMENTATIONS`; "" chooses by platform.
      alignment: a promise that M and every group size are multiples of this.

    Returns:
      [M, N].

    Raises:
      ValueError: unknown implementation, shapes that do not fit, or concrete `group_sizes` that are
        negative, unaligned or sum past M.
    """
    if lhs.ndim != 2 or rhs.ndim != 3 or group_sizes.shape != rhs.shape[:1] or lhs.shape[1] != rhs.shape[1]:
        raise ValueError(
            f"lhs {lhs.shape}, rhs {rhs.shape} and group_sizes {group_sizes.shape} do not fit [M, K], [G, K, N], [G]"
        )
    if not isinstance(group_sizes, Tracer):
        _check_sizes(np.asarray(group_sizes), lhs.shape[0], alignment)
    dtype = np.dtype(preferred_element_type or lhs.dtype)
    return _grouped_matmul(_Options(choose(implementation), alignment, dtype), lhs, rhs, group_sizes)


def _check_sizes(sizes: np.ndarray, rows: int, alignment: int) -> None:
    if (sizes < 0).any() or sizes.sum() > rows:
        raise ValueError(f"group_sizes {sizes} have to be at least 0 and sum to at most M = {rows}")
    if (sizes % alignment).any() or rows % alignment:
        raise ValueError(f"group_sizes {sizes} and M = {rows} have to be multiples of alignment = {alignment}")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _grouped_matmul(options: _Options, lhs: Array, rhs: Array, group_sizes: Array) -> Array:
    return _forward(options, lhs, rhs, group_sizes)[0]


def _forward(options: _Options, lhs: Array, rhs: Array, group_sizes: Array):
    implementation = IMPLEMENTATIONS[options.implementation]
    lhs = _select(lhs, group_sizes) if implementation.NEEDS_ZEROS else lhs
    out = implementation.gmm(lhs, rhs, group_sizes, options.alignment, transpose_rhs=False)
    return out.astype(options.dtype), (lhs, rhs, group_sizes)


def _backward(options: _Options, residuals, grad: Array):
    lhs, rhs, group_sizes = residuals
    implementation = IMPLEMENTATIONS[options.implementation]
    grad = _select(grad, group_sizes) if implementation.NEEDS_ZEROS else grad
    dlhs = implementation.gmm(grad, rhs, group_sizes, options.alignment, transpose_rhs=True)
    drhs = implementation.tgmm(lhs, grad, group_sizes, options.alignment)
    return dlhs.astype(lhs.dtype), drhs.astype(rhs.dtype), None


def _select(rows: Array, group_sizes: Array) -> Array:
    # Select, not multiply: 0 * NaN is NaN.
    inside = jnp.arange(rows.shape[0]) < group_sizes.sum()
    return jnp.where(inside[:, None], rows, jnp.zeros((), rows.dtype))


_grouped_matmul.defvjp(_forward, _backward)
