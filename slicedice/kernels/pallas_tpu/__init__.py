"""Grouped products and the experts' feed-forward network on TPU: Pallas kernels compiled by Mosaic.

Every kernel walks a list of visits (`visits`) in blocks chosen for the chip (`tiles`), for some of the models at a
time where all of theirs cannot be listed (`parts`). Without a TPU they run in JAX's TPU interpret mode,
`jax.experimental.pallas.tpu.force_tpu_interpret_mode`, for tests only.

A device of two cores (v5p) uses both of them only in calls whose widths are cut in tiles, which are "parallel"; the
expert FFN's forward pass uses one, since it adds up over its tiles of F.
"""

from slicedice.kernels.pallas_tpu.ffn import ffn
from slicedice.kernels.pallas_tpu.ffn_backward import ffn_backward
from slicedice.kernels.pallas_tpu.gmm import gmm
from slicedice.kernels.pallas_tpu.tgmm import tgmm

__all__ = ["NEEDS_ZEROS", "ffn", "ffn_backward", "gmm", "row_alignment", "tgmm"]

NEEDS_ZEROS = False
"""Rows of no group are never seen."""


def row_alignment(rows: int, groups: int) -> int:
    """The multiple of rows at which groups had best begin: any, as tiles are masked."""
    del rows, groups
    return 1
