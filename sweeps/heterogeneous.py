"""Do experts of two sizes in one layer beat experts of one? The study's heterogeneous layers (section 3.2, table 3).

Hypothesis: a layer of two expert sets of different granularity lies between its homogeneous parents at equal
sparsity, or is no better than them.

Figures: 4 (13 at the small scales).
Runs: 43 a scale, 4.0e20 FLOPs at 300m; at `nano` 24, 12 minutes on two cores.
"""

from slicedice.grid import Figure, Grid, Panel, axis, chain, each, product, where
from slicedice.grid.study import anchors, cells, dense, figure_name, seeds
from slicedice.spec import moe_layer

# Sparsities by the granularities of the two sets.
STUDY = {
    "1/2+1/4": (4, 8, 16, 32),
    "1/4+1/8": (4, 8, 16, 32),
    "1/8+1/16": (4, 8, 16, 32),
    "1/16+1/32": (2, 4, 8, 16),
}
NANO = {"1/2+1/4": (8, 32), "1/4+1/8": (8, 32)}
SMOKE = {"1/2+1/4": (4,)}

PANELS = (
    Panel("Fixed n", x="s", hue="n", style="kind"),
    Panel("Layers and their parents", x="s", hue="granularity", style="kind"),
)


def get_grid(scale: str) -> Grid:
    """The grid at `scale`."""
    pairs = {"nano": NANO, "smoke": SMOKE}.get(scale, STUDY)
    layers = chain(*(product(axis("s", sparsities), axis("g", [gs])) for gs, sparsities in pairs.items()))
    parents = where(cells(scale), lambda s, g: any(g in gs.split("+") and s in pairs[gs] for gs in pairs))
    points = dense() + each(chain(parents, layers), moe_layer)
    figure = Figure(figure_name(4, scale), "Experts of two sizes against one", PANELS, points)
    return Grid(figures=(figure,), seeds=seeds(scale), anchors=anchors(scale))
