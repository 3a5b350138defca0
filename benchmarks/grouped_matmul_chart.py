"""Draws what `grouped_matmul.py --save` measured: docs/grouped_matmul-DEVICE.svg for each file of results.

    python benchmarks/grouped_matmul_chart.py

A panel for each direction: time over a dense product's of as many operations, against the mean rows of a group. A line
is the median over D and G of one expert width; dots are all shapes, equal groups alone.
"""

import json
import statistics
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt

from slicedice.report.figures import COLORS, MARKERS, STYLE

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parent.parent / "docs"
TITLES = {
    "forward": "product",
    "dlhs": "gradient of rows",
    "drhs": "gradient of matrices",
    "ffn": "expert FFN",
    "ffn_grad": "expert FFN and gradients",
}


def main() -> None:
    """Draws every file of results."""
    for path in sorted(RESULTS.glob("grouped_matmul-*.json")):
        with plt.rc_context(STYLE):
            drawn = DOCS / f"{path.stem}.svg"
            draw(json.loads(path.read_text())).savefig(drawn, metadata={"Date": None})
        print(drawn)


def draw(result: dict):
    """The chart of one device."""
    drawing, axes = plt.subplots(1, len(TITLES), figsize=(3.0 * len(TITLES), 3.6), sharey=True)
    for (direction, title), ax in zip(TITLES.items(), axes, strict=True):
        ratios: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in result["rows"]:
            if row["direction"] == direction and row["groups"] == "equal" and "over_dense" in row:
                _, f, _, rows = (int(part.lstrip("DFGr")) for part in row["shape"].split("-"))
                ratios[f][rows].append(row["over_dense"])
        for i, (f, by_rows) in enumerate(sorted(ratios.items())):
            x = sorted(by_rows)
            ax.plot(x, [statistics.median(by_rows[r]) for r in x], color=COLORS[i], marker=MARKERS[i], label=f"F = {f}")
            ax.scatter(
                [r for r in x for _ in by_rows[r]], [v for r in x for v in by_rows[r]], s=6, color=COLORS[i], alpha=0.3
            )
        ax.axhline(1, color="black", linewidth=0.8)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        ax.xaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_title(title, fontsize=9)
        ax.set_xlabel("mean rows a group")
    axes[0].set_ylabel("time over a dense product's")
    axes[0].legend(fontsize=8)
    drawing.suptitle(
        f"{result['implementation']} on {result['device']}, {result['dtype']}, {result['date']}",
        x=0.01,
        ha="left",
        fontweight="bold",
    )
    drawing.tight_layout()
    return drawing


if __name__ == "__main__":
    main()
