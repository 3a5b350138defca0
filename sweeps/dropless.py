"""Does dropping tokens hurt? The grid of count and granularity under both routers (section 3.3).

Hypothesis: dropless routing is comparable to default routing, which drops what exceeds an expert's capacity, or better,
with loss-free balancing (gamma 1e-3) and without. How much of that is dropping at evaluation, the losses of
default-routed models evaluated without a capacity tell.

Figures: 6 and 23, and each evaluated without capacity.
Runs: 166 a scale, 1.6e21 FLOPs at 300m; at `nano` 52, 24 minutes on two cores.
"""

from slicedice.grid import Figure, Grid, Panel, axis, each, product
from slicedice.grid.study import anchors, cells, seeds
from slicedice.spec import moe_layer

ROUTERS = axis("router.kind", ["dropless", "default"])
OVER_G = (Panel("", x="g", hue="s", style="router"),)


def get_grid(scale: str) -> Grid:
    """The grid at `scale`."""
    layers = each(cells(scale, (1, 8, 32) if scale == "nano" else ()), moe_layer)
    figures = []
    for name, gamma in (("figure_6", 0.0), ("figure_23", 1e-3)):
        points = product(layers, axis("router.gamma", [gamma]), ROUTERS)
        title = f"Dropless and default routing, gamma = {gamma:g}"
        figures.append(Figure(name, title, OVER_G, points, columns="scale"))
        figures.append(
            Figure(
                f"{name}_without_capacity",
                f"{title}, evaluated without capacity",
                OVER_G,
                points,
                y="without_capacity_loss",
                columns="scale",
            )
        )
    return Grid(figures=tuple(figures), seeds=seeds(scale), anchors=anchors(scale))
