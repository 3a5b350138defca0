"""From how much training on do experts pay? The grid at small scales and two budgets of tokens.

Hypothesis: at 20 tokens a parameter MoEs of 10m and 20m active parameters are worse than dense in all configurations;
trained longer (10m on 4B tokens, 20m on 2B) they win.

Figures: 16 at 10m, 17 at 20m.
Runs: 98 a scale, 1.5e19 FLOPs over both; at `nano`, where the small budget is a quarter, 32, ten minutes on two cores.
"""

from slicedice.grid import Figure, Grid, Panel, axis, each, product
from slicedice.grid.study import anchors, cells, seeds
from slicedice.spec import moe_layer

TOKENS = {
    "10m": [200_000_000, 4_000_000_000],
    "20m": [400_000_000, 2_000_000_000],
    "nano": [400_000, 1_600_000],
    "smoke": [7_680, 15_360],
}
FIGURES = {"20m": "figure_17"}


def get_grid(scale: str) -> Grid:
    """The grid at `scale`."""
    if scale not in TOKENS:
        raise ValueError(f"there is no second budget at {scale}: choose {', '.join(TOKENS)}, or add one to TOKENS")
    budgets = axis("budget.tokens", TOKENS[scale])
    points = product(each(cells(scale, (1, 8, 32) if scale == "nano" else ()), moe_layer), budgets)
    panel = Panel("", x="g", hue="s")
    figure = Figure(
        FIGURES.get(scale, "figure_16"), "The grid at two budgets of tokens", (panel,), points, columns="tokens"
    )
    return Grid(figures=(figure,), seeds=seeds(scale), anchors=product(anchors(scale), budgets))
