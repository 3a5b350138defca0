"""What a figure shows, declared: the runs it reads, its axes, hues and panels. Drawing is the report's.

Axes, hues, styles and facets are coordinates of a run, listed in `AXES` and `GROUPS`; y is a column of the results.
"""

from dataclasses import dataclass, field

from slicedice.grid.algebra import Points
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
"""Coordinates that are numbers, with their label: what may be an axis."""

GROUPS = {
    **AXES,
    "granularity": "granularity of each set",
    "kind": "kind of layer",
    "generalist": "generalist g",
    "wiring": "wiring",
    "router": "router",
    "balancing": "balancing",
    "scale": "scale",
}
"""Coordinates that part runs into lines or panels: hues, styles and facets."""

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
"""Columns of the results that a figure may show, beside those that begin with one of `PREFIXES`."""

KINDS = ("loss_", "bits_per_byte_", "accuracy_")
PREFIXES = (*KINDS, *(f"without_capacity_{kind}" for kind in KINDS))
"""What columns of one evaluation set or task begin with."""


@dataclass(frozen=True)
class Panel:
    """One panel: over `x`, a line for each value of `hue` and of `style`, if there is one."""

    title: str
    x: str
    hue: str
    style: str = ""

    def __post_init__(self):
        """Refuses what is no axis, before anything is trained for it."""
        require(self.x in AXES, "Panel.x", self.x, f"choose one of {', '.join(AXES)}")
        for name in ("hue", "style"):
            value = getattr(self, name)
            known = value in GROUPS or (name == "style" and not value)
            require(known, f"Panel.{name}", value, f"choose one of {', '.join(GROUPS)}")


@dataclass(frozen=True)
class Figure:
    """Panels with a common y axis in each row, and a horizontal line where the dense model of the scale lies.

    name: of its files. title: above the panels. panels: from left to right.
    points: the runs it reads, as overrides of the scale's config; a sweep that has this figure trains them. Where
      there are none, it reads the grid's own points.
    y: a column of the results.
    rows: the coordinate whose values make rows of panels.
    columns: with one panel, the coordinate whose values repeat it from left to right.
    """

    name: str
    title: str
    panels: tuple[Panel, ...]
    points: Points = field(default_factory=list)
    y: str = "loss"
    rows: str = "scale"
    columns: str = ""

    def __post_init__(self):
        """Refuses what is no column of the results or no facet, and a figure of nothing."""
        require(len(self.panels) > 0, "Figure.panels", self.panels, "give at least one Panel")
        known = self.y in MEASURES or self.y.startswith(PREFIXES)
        require(known, "Figure.y", self.y, f"choose one of {', '.join(MEASURES)}, loss_DOMAIN or accuracy_TASK")
        require(self.rows in GROUPS, "Figure.rows", self.rows, f"choose one of {', '.join(GROUPS)}")
        require(
            not self.columns or (self.columns in GROUPS and len(self.panels) == 1),
            "Figure.columns",
            self.columns,
            f"choose one of {', '.join(GROUPS)}, and give one Panel to be repeated",
        )
        require(
            "scale" in (self.rows, self.columns),
            "Figure.rows",
            self.rows,
            "rows or columns have to be of scales: losses of two scales do not belong into one panel",
        )
