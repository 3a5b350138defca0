"""Does an expert that is always on help? The study's generalist (section 3.2), in both wirings.

Hypothesis: at equal active and total parameters a layer with a generalist is comparable to one without, or worse.
The authors' code feeds its routed experts from before attention ("parallel"); whether that is what hurts, the "plain"
wiring tells.

Figures: 5 (14 at the small scales) and 21.
Runs: 81 a scale, 7.5e20 FLOPs at 300m; at `nano` 42, 18 minutes on two cores.
"""

from slicedice.grid import Figure, Grid, Panel, axis, chain, each, product, where
from slicedice.grid.study import anchors, cells, dense, figure_name, seeds
from slicedice.spec import moe_layer

# Sparsities by the granularity of the generalist and of the routed experts; total parameters are matched.
STUDY = {
    ("1/2", "1/2"): (2, 4, 8),
    ("1/2", "1/4"): (2, 4, 8, 16),
    ("1/2", "1/8"): (2, 4, 8, 16),
    ("1/4", "1/4"): (2, 4, 8, 16, 32),
    ("1/4", "1/8"): (2, 4, 8),
    ("1/8", "1/8"): (2, 4, 8, 16),
    ("1/8", "1/16"): (2,),
    ("1/8", "1/32"): (2,),
}
NANO = {("1/2", "1/4"): (2, 8), ("1/4", "1/4"): (2, 8), ("1/2", "1/8"): (2, 8)}
SMOKE = {("1/2", "1/2"): (2, 4)}
MIXED = {"nano": (8,), "smoke": (4,)}  # of layers with experts of 1/4 and of 1/8, beside a generalist of 1/2

WIRINGS = axis("model.wiring", ["plain", "parallel"])


def get_grid(scale: str) -> Grid:
    """The grid at `scale`."""
    table = {"nano": NANO, "smoke": SMOKE}.get(scale, STUDY)
    mixed = product(axis("s", MIXED.get(scale, (4, 8, 16))), axis("g", ["1/4+1/8"]))
    rows = (product(axis("s", table[gs]), axis("g", gs[1:]), axis("generalist", gs[:1])) for gs in table)
    points = product(each(chain(*rows), moe_layer), WIRINGS)
    alone = where(cells(scale), lambda s, g: any(g == gs[1] and s in table[gs] for gs in table))
    mixed_points = product(each(product(mixed, axis("generalist", ["1/2"])), moe_layer), WIRINGS)
    over_s = Panel("", x="s", hue="generalist", style="wiring")
    figures = (
        Figure(
            figure_name(5, scale),
            "With and without a generalist",
            (over_s,),
            dense() + each(alone, moe_layer) + points,
            columns="g",
        ),
        Figure(
            "figure_21",
            "A generalist beside experts of two sizes",
            (over_s,),
            dense() + each(mixed, moe_layer) + mixed_points,
        ),
    )
    return Grid(figures=figures, seeds=seeds(scale), anchors=anchors(scale))
