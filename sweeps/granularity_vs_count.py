"""How many experts, and how fine? The study's grid of count and granularity (section 3.1).

Hypothesis: loss falls with total expert parameters, whether they grow through the experts' size (fixed
count) or their number (fixed granularity), and at equal totals depends little on which.

Figures: 2 (12 at the small scales), and at the study's own scales 25, of runs that were evaluated on HellaSwag, while
or after they trained (`--config.execution.evaluation_tasks=hellaswag`, or `python -m slicedice.evaluate --tasks
hellaswag`).
Runs: 49 a scale, 4.6e20 FLOPs at 300m; at `nano` 26, 12 minutes on two cores.
"""

from slicedice.grid import Figure, Grid, Panel, each
from slicedice.grid.study import SCALES, anchors, cells, figure_name, seeds
from slicedice.spec import moe_layer

PANELS = (
    Panel("Fixed n, larger experts", x="g", hue="n"),
    Panel("Fixed g, more experts", x="n", hue="g"),
    Panel("Same total, fewer or finer", x="g", hue="s"),
)


def get_grid(scale: str) -> Grid:
    """The grid at `scale`."""
    points = each(cells(scale), moe_layer)
    figures = (Figure(figure_name(2, scale), "Count and granularity", PANELS, points),)
    if scale in SCALES:  # models of bytes do not read HellaSwag
        figures += (Figure("figure_25", "HellaSwag accuracy", PANELS, points, y="accuracy_hellaswag"),)
    return Grid(figures=figures, seeds=seeds(scale), anchors=anchors(scale))
