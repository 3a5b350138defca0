"""How hard to balance? Four settings of load-balancing loss and loss-free bias over the grid (section 3.3).

Hypothesis: they are comparable, except that alpha 1e-2 with gamma 1e-3 hurts from n >= 512; alpha 1e-4 with gamma 0
leaves the highest load-balancing loss and imbalance.

Figures: 7 (15 at the small scales), 9, 10 and 11.
Runs: 163 a scale, 1.5e21 FLOPs at 300m; at `nano` 60, 30 minutes on two cores.
"""

from slicedice.grid import Figure, Grid, Panel, axis, each, product, where
from slicedice.grid.study import anchors, cells, dense, figure_name, seeds
from slicedice.spec import moe_layer

SETTINGS = product(axis("router.alpha", [1e-4, 1e-2]), axis("router.gamma", [0.0, 1e-3]))
MEASURES = {
    "figure_9": ("Train cross-entropy", "train_loss"),
    "figure_10": ("Load-balancing loss", "load_balancing_loss"),
    "figure_11": ("Load imbalance", "load_imbalance"),
}


def get_grid(scale: str) -> Grid:
    """The grid at `scale`."""
    layers = where(cells(scale, (8, 32) if scale == "nano" else ()), lambda s, g: s > 1)  # where there is a choice
    # The least count for which the study finds harm.
    layers += [{"s": 32, "g": "1/16"}] if scale == "nano" else []
    points = dense() + product(each(layers, moe_layer), SETTINGS)
    over_s = (Panel("", x="s", hue="balancing"),)
    figures = [Figure(figure_name(7, scale), "Balancing: held-out loss", over_s, points, columns="g")]
    for name, (title, y) in MEASURES.items():
        title = f"{title}, mean of the last 50 steps"
        figures.append(Figure(name, title, over_s, points, y=y, rows="g", columns="scale"))
    return Grid(figures=tuple(figures), seeds=seeds(scale), anchors=anchors(scale))
