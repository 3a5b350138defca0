"""How many experts, and how fine? The study's grid of count and granularity (section 3.1).

Hypothesis: loss falls with total expert parameters, whether they grow through the experts' size (fixed
count) or their number (fixed granularity), and at equal totals depends little on which.

Figures: 2. Runs: 43 a seed at the study's scales; at `nano` 12 with 2 seeds, 8 minutes on two cores.
"""

from slicedice.grid import Figure, Grid, Panel, axis, chain, each, product
from slicedice.spec import homogeneous

FIGURE_2 = Figure(
    "figure_2",
    "Count and granularity",
    (
        Panel("Experts of a count grow", x="g", hue="n"),
        Panel("Experts of a size multiply", x="n", hue="g"),
        Panel("Same total, fewer or finer", x="g", hue="s"),
    ),
)

# Granularities by sparsity. At s = 1 every expert is active; g = 1 there is the dense model.
STUDY = {
    1: "1 1/2 1/4 1/8",
    2: "1 1/2 1/4 1/8 1/16 1/32 1/64",
    4: "1 1/2 1/4 1/8 1/16 1/32 1/64",
    8: "1 1/2 1/4 1/8 1/16 1/32 1/64",
    16: "1 1/2 1/4 1/8 1/16",
    32: "1/2 1/4 1/8 1/16",
    64: "1/2 1/4 1/8 1/16",
    128: "1/2 1/4",
    256: "1/2 1/4 1/16",
}
# What two CPU cores can tell apart in ten minutes, with lines of three points in every panel. Coarse
# experts (g = 1, so k = 1) are left to the larger scales; docs/nano.md says why.
NANO = {1: "1", 2: "1/2 1/4 1/8", 8: "1/2 1/4 1/8", 32: "1/2 1/4 1/8", 4: "1/4", 16: "1/4"}
# What a test needs.
SMOKE = {1: "1", 2: "1 1/2", 4: "1 1/2"}


def get_grid(scale: str) -> Grid:
    """The grid at `scale`."""
    table = {"nano": NANO, "smoke": SMOKE}.get(scale, STUDY)
    cells = chain(*(product(axis("s", [s]), axis("g", gs.split())) for s, gs in table.items()))
    return Grid(each(cells, homogeneous), figures=(FIGURE_2,), seeds=2 if scale == "nano" else 1)
