"""Cells that several of the study's grids share, at every scale. Source: arXiv 2605.11689, section 3.1."""

from slicedice.grid.algebra import Points, axis, chain, each, product
from slicedice.spec import moe_layer

SCALES = ("10m", "20m", "50m", "80m", "110m", "200m", "300m")
SMALL_SCALES = SCALES[:2]
"""Those of the paper's small-scale appendix."""

# Granularities by sparsity. At s = 1 every expert is active; g = 1 there is the dense model.
STUDY = {
    1: "1 1/2 1/4 1/8",
    2: "1 1/2 1/4 1/8 1/16 1/32 1/64",
    4: "1 1/2 1/4 1/8 1/16 1/32 1/64",
    8: "1 1/2 1/4 1/8 1/16 1/32 1/64",
    16: "1 1/2 1/4 1/8 1/16",
    32: "1/2 1/4 1/8 1/16",
    64: "1/2 1/4 1/8 1/16",
    128: "1/2 1/4",
    256: "1/2 1/4 1/16",
}
# What two CPU cores can tell apart in about ten minutes, with lines of three points in every panel. Coarse
# experts (g = 1, so k = 1) are left to the larger scales; docs/nano.md says why.
NANO = {1: "1", 2: "1/2 1/4 1/8", 8: "1/2 1/4 1/8", 32: "1/2 1/4 1/8", 4: "1/4", 16: "1/4"}
# What a test needs.
SMOKE = {1: "1", 2: "1 1/2", 4: "1 1/2"}

SMALL_SCALE_FIGURES = {2: 12, 4: 13, 5: 14, 7: 15}
"""The paper's numbers of its figures, drawn again for the small scales."""


def cells(scale: str, sparsities: tuple[int, ...] = ()) -> Points:
    """The study's moe_layer cells as points of `s` and `g`: all of them, or those of some `sparsities`."""
    table = {"nano": NANO, "smoke": SMOKE}.get(scale, STUDY)
    return chain(
        *(product(axis("s", [s]), axis("g", gs.split())) for s, gs in table.items() if s in (sparsities or table))
    )


def dense() -> Points:
    """The dense model."""
    return [moe_layer(s=1, g="1")]


def anchors(scale: str) -> Points:
    """Where a scale's noise is measured: dense, a MoE layer of middling and, past `nano`, one of high sparsity."""
    moe = {"smoke": [{"s": 4, "g": "1/2"}], "nano": [{"s": 8, "g": "1/4"}]}
    return dense() + each(moe.get(scale, [{"s": 8, "g": "1/4"}, {"s": 32, "g": "1/8"}]), moe_layer)


def seeds(scale: str) -> int:
    """Seeds of a cell: one, as the study has it, but at `nano` two, where noise is large and runs are cheap."""
    return 2 if scale == "nano" else 1


def figure_name(number: int, scale: str) -> str:
    """Of the paper's figure; at the small scales that of its repetition there."""
    return f"figure_{SMALL_SCALE_FIGURES.get(number, number) if scale in SMALL_SCALES else number}"
