"""What a figure shows, declared: which axis, which hue, which panels. Drawing is the report's.

Axes and hues are names of a run's coordinates: `n` experts, `k` active, granularity `g`, sparsity `s`,
`total_parameters`; y is a column of the results.
"""

from dataclasses import dataclass

AXES = {
    "n": "experts n",
    "k": "active experts k",
    "g": "granularity g",
    "s": "sparsity s = n·g",
    "total_parameters": "total parameters",
}
"""Coordinates that may be an axis or a hue, with their label."""


@dataclass(frozen=True)
class Panel:
    """One panel: a line for each value of `hue`, over `x`."""

    title: str
    x: str
    hue: str


@dataclass(frozen=True)
class Figure:
    """Panels with a common y axis, and a horizontal line where the dense model of the scale lies.

    name: of its files. title: above the panels. y: a results column. panels: from left to right.
    """

    name: str
    title: str
    panels: tuple[Panel, ...]
    y: str = "loss"
