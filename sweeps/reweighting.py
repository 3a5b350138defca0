"""Is it the weights? Every expert active (s = 1), so that a router can only reweight parts of a dense FFN.

Hypothesis: reweighting without sparsity is no better than dense.

Figures: reweighting.
Runs: 12 a scale, 1.1e20 FLOPs at 300m; at `nano` 12, five minutes on two cores.
"""

from slicedice.grid import Figure, Grid, Panel, axis, each, product
from slicedice.grid.study import anchors, dense, seeds
from slicedice.spec import moe_layer


def get_grid(scale: str) -> Grid:
    """The grid at `scale`."""
    points = dense() + each(product(axis("s", [1]), axis("g", ["1/2", "1/4", "1/8"])), moe_layer)
    panel = Panel("", x="g", hue="s")
    figure = Figure("reweighting", "All experts active, weights learned", (panel,), points, columns="scale")
    return Grid(figures=(figure,), seeds=seeds(scale), anchors=anchors(scale))
