"""The whole study: every other grid, at the five main scales and the two small ones, each run once.

Hypotheses: those of the grids. Figures: all of them.

Runs: 2394 over the seven scales (the paper trained "over 2,000"), 5.0e21 FLOPs; at `nano` 168, 65 to 80 minutes
on two cores.
"""

from slicedice.grid import Grid, load_grid, union
from slicedice.grid.study import SCALES

DEFAULT_SCALES = SCALES  # where --scale does not say

GRIDS = (
    "granularity_vs_count",
    "heterogeneous",
    "generalist",
    "dropless",
    "load_balancing",
    "reweighting",
    "learning_rate",
)
WITH_TWO_BUDGETS = ("10m", "20m", "nano", "smoke")


def get_grid(scale: str) -> Grid:
    """The grid at `scale`."""
    names = (*GRIDS, "compute_threshold") if scale in WITH_TWO_BUDGETS else GRIDS
    return union(*(load_grid(name, scale) for name in names))
