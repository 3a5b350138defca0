"""What an implementation of the grouped matmul provides, which there are, and how one is chosen."""

import functools
import importlib
import logging
from typing import Any, Protocol, cast

import numpy as np
from jaxtyping import Array

from slicedice.kernels.groups import Groups
from slicedice.kernels.platform import platform

log = logging.getLogger(__name__)

IMPLEMENTATIONS = ("pallas_tpu", "pallas_gpu", "native", "blocks", "ragged_dot")
"""Modules of this package. "pallas_tpu" and "pallas_gpu" (Hopper) are Pallas kernels; "native" is for CPUs with a
C++ compiler; "blocks" costs FLOPs in proportion to rows everywhere; "ragged_dot" is XLA's own, to compare
with: on CPU, and by reports on GPU too, it may multiply every row with every matrix."""


class Implementation(Protocol):
    """What a module of this package provides. Every function is of one program's arrays, and is never asked to vmap.

    Products accumulate in float32. Rows of no group come out as zeros; where `NEEDS_ZEROS`, they come in as zeros,
    elsewhere they may hold anything and are never read.
    """

    @property
    def NEEDS_ZEROS(self) -> bool:
        """Whether rows of no group have to come in as zeros."""
        ...

    def gmm(self, lhs: Array, rhs: Array, groups: Groups, *, transpose_rhs: bool, dtype: np.dtype) -> Array:
        """[M, K], [G, K, N] -> [M, N]; with `transpose_rhs`, of [G, N, K]."""
        ...

    def tgmm(self, lhs: Array, rhs: Array, groups: Groups, *, dtype: np.dtype) -> Array:
        """[M, K], [M, N] -> [G, K, N], the sum of outer products of a group's rows; zeros for an empty group."""
        ...

    def ffn(self, rows: Array, gate: Array, up: Array, down: Array, groups: Groups) -> tuple[Array, Any]:
        """down(silu(gate(rows)) * up(rows)) of [M, D], [G, D, F] twice and [G, F, D]; and arrays `saved`.

        What is saved for `ffn_backward`, each array with M rows, is up to the implementation.
        """
        ...

    def ffn_backward(
        self, rows: Array, gate: Array, up: Array, down: Array, groups: Groups, saved: Any, grad: Array
    ) -> tuple[Array, Array, Array, Array]:
        """The gradients of rows, gate, up and down, each in the dtype of what it is the gradient of."""
        ...

    def row_alignment(self, rows: int, groups: int) -> int:
        """The multiple of rows at which groups had best begin."""
        ...


@functools.cache
def load(name: str) -> Implementation:
    """The module of that name; modules are imported when used, since each brings a compiler's front end."""
    return cast(Implementation, importlib.import_module(f"slicedice.kernels.{name}"))


def choose(implementation: str = "") -> str:
    """Resolves the name of an implementation, "" by platform, and says once what was chosen.

    A Pallas kernel that is named is not refused elsewhere: it can be lowered for its platform, or interpreted.

    Raises:
      ValueError: there is no implementation of that name, or "native" cannot be used here.
    """
    if implementation and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation = {implementation!r}: choose one of {', '.join(IMPLEMENTATIONS)}")
    where = platform()
    if implementation == "native" and not is_native():
        raise ValueError("implementation = 'native' needs the CPU and a C++ compiler; the log says what failed")
    name = implementation or _of_platform(where)
    _say(where, name)
    return name


@functools.cache
def _say(platform: str, name: str) -> None:
    log.info("grouped matmul on %s: %s", platform, name)


def _of_platform(platform: str) -> str:
    if platform == "tpu":
        return "pallas_tpu"
    if platform == "cpu":
        return "native" if is_native() else "blocks"
    from slicedice.kernels import pallas_gpu

    return "pallas_gpu" if pallas_gpu.available() else "blocks"


def is_native() -> bool:
    """Whether kernels in C++ are compiled for: on CPU, where they can be made."""
    from slicedice.kernels import native

    return platform() == "cpu" and native.available()


def row_alignment(rows: int, groups: int, implementation: str = "") -> int:
    """The multiple of rows at which groups had best begin, for `rows` rows spread over `groups` groups.

    Whoever lays out the rows can spare the implementation a re-layout by starting every group at a multiple
    of this, filling up with rows of zero weight, and passing it on as `alignment`.
    """
    return load(choose(implementation)).row_alignment(rows, groups)
