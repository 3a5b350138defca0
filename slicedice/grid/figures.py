"""What a figure shows, declared: which axis, which hue, which panels. Drawing is the report's.

Axes and hues are names of a run's coordinates, which `AXES` lists; y is a column of the results.
"""

from dataclasses import dataclass

from slicedice.spec.errors import require

AXES = {
    "n": "experts n",
    "k": "active experts k",
    "g": "granularity g",
    "s": "sparsity s = n·g",
    "total_parameters": "total parameters",
    "tokens": "training tokens",
    "learning_rate": "peak learning rate",
}
"""Coordinates that may be an axis or a hue, with their label."""

MEASURES = (
    "loss",
    "bits_per_byte",
    "without_capacity_loss",
    "train_loss",
    "load_balancing_loss",
    "load_imbalance",
    "dropped_share",
    "dead_experts",
)
"""Columns of the results that a figure may show; `loss_DOMAIN` and `bits_per_byte_DOMAIN` are others."""


@dataclass(frozen=True)
class Panel:
    """One panel: a line for each value of `hue`, over `x`."""

    title: str
    x: str
    hue: str

    def __post_init__(self):
        """Refuses what is no axis, before anything is trained for it."""
        for field, name in (("Panel.x", self.x), ("Panel.hue", self.hue)):
            require(name in AXES, field, name, f"choose one of {', '.join(AXES)}")


@dataclass(frozen=True)
class Figure:
    """Panels with a common y axis, and a horizontal line where the dense model of the scale lies.

    name: of its files. title: above the panels. y: a results column. panels: from left to right.
    """

    name: str
    title: str
    panels: tuple[Panel, ...]
    y: str = "loss"

    def __post_init__(self):
        """Refuses what is no column of the results, and a figure of nothing."""
        require(len(self.panels) > 0, "Figure.panels", self.panels, "give at least one Panel")
        known = self.y in MEASURES or self.y.startswith(("loss_", "bits_per_byte_"))
        require(known, "Figure.y", self.y, f"choose one of {', '.join(MEASURES)}, or loss_DOMAIN")
