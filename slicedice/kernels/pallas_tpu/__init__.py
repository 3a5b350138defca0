"""Grouped products and the experts' feed-forward network on TPU: Pallas kernels compiled by Mosaic.

Every kernel walks a list of visits (`visits`) in blocks chosen for the chip (`tiles`). Without a TPU they run
in JAX's TPU interpret mode, `jax.experimental.pallas.tpu.force_tpu_interpret_mode`, for tests only.

A device of two cores (v5p) uses both of them only in calls whose widths are cut in tiles.
"""

from typing import Any

from jaxtyping import Array, Float

from slicedice.kernels.groups import Groups
from slicedice.kernels.pallas_tpu import ffn as _ffn
from slicedice.kernels.pallas_tpu import ffn_backward as _ffn_backward
from slicedice.kernels.pallas_tpu.gmm import gmm
from slicedice.kernels.pallas_tpu.tgmm import tgmm

__all__ = ["NEEDS_ZEROS", "ffn", "ffn_backward", "gmm", "row_alignment", "tgmm"]

NEEDS_ZEROS = False
"""Rows of no group are never seen."""


def row_alignment(rows: int, groups: int) -> int:
    """The multiple of rows at which groups had best begin: any, as tiles are masked."""
    del rows, groups
    return 1


def ffn(
    rows: Float[Array, "M D"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    down: Float[Array, "E F D"],
    groups: Groups,
) -> tuple[Float[Array, "M D"], tuple[()]]:
    """The experts' network, and what is saved for its gradients: nothing, they are given no more than its inputs."""
    return _ffn.ffn(rows, gate, up, down, groups), ()


def ffn_backward(
    rows: Float[Array, "M D"],
    gate: Float[Array, "E D F"],
    up: Float[Array, "E D F"],
    down: Float[Array, "E F D"],
    groups: Groups,
    saved: Any,
    grad: Float[Array, "M D"],
) -> tuple[Float[Array, "M D"], Float[Array, "E D F"], Float[Array, "E D F"], Float[Array, "E F D"]]:
    """The gradients of rows, gate, up and down, each in the dtype of what it is the gradient of."""
    del saved
    return _ffn_backward.ffn_backward(rows, gate, up, down, groups, grad)
