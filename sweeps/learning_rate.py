"""Does the learning rate decide who wins? Five peaks for dense and two MoE layers (appendix B).

Hypothesis: the best rate lies above 4e-4 at these step counts, and the order of the layers does not depend on it.

Figures: learning_rate.
Runs: 21 a scale, 2.0e20 FLOPs at 300m; at `nano` 22, ten minutes on two cores.
"""

from slicedice.grid import Figure, Grid, Panel, axis, product
from slicedice.grid.study import anchors, seeds

RATES = axis("optimizer.learning_rate", [1e-4, 4e-4, 1e-3, 4e-3, 1e-2])


def get_grid(scale: str) -> Grid:
    """The grid at `scale`."""
    panel = Panel("", x="learning_rate", hue="s")
    points = product(anchors(scale), RATES)
    figure = Figure("learning_rate", "Peak learning rate", (panel,), points, columns="scale")
    return Grid(figures=(figure,), seeds=seeds(scale), anchors=anchors(scale))
