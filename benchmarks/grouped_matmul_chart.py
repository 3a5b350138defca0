"""Draws what `grouped_matmul.py --save` measured, docs/grouped_matmul-DEVICE.svg for each device, and sums it up.

    python benchmarks/grouped_matmul_chart.py

A panel for each direction: time over a dense product's of as many operations, against the mean rows of a group. A line
is the median over D and G of one expert width; dots are all shapes, equal groups alone. The printed tables have these
ratios, and the shares of the roofline, of expert widths from 64 on; below them stands what missed the targets on CPU:
twice a dense product's time from 64 rows a group on, four times at 8, and a fifteenth of XLA's `ragged_dot`.
"""

import json
import operator
import statistics
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

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
    """Draws every file of results, and prints its summary."""
    for path in sorted(RESULTS.glob("grouped_matmul-*.json")):
        result = json.loads(path.read_text())
        with plt.rc_context(STYLE):
            drawn = DOCS / f"{path.stem}.svg"
            draw(result).savefig(drawn, metadata={"Date": None})
        print(f"{drawn}\n\n{summary(result)}\n")


def summary(result: dict[str, Any]) -> str:
    """Markdown tables of the least, median and most over shapes of equal groups, and the misses of all groups."""
    good = [dict(zip("dfgr", numbers(row), strict=True)) | row for row in result["rows"] if "over_dense" in row]
    wide = [row for row in good if row["f"] >= 64]

    def spread(rows: list[dict[str, Any]], key: str) -> str:
        values = [row[key] for row in rows]
        return ", ".join(f"{v:.2f}" for v in (min(values), statistics.median(values), max(values))) if rows else ""

    lines = []
    for what, key in (("time over dense", "over_dense"), ("share of roofline", "roofline_share")):
        lines += [f"| {what}, rows a group | " + " | ".join(TITLES.values()) + " |", "|---" * (len(TITLES) + 1) + "|"]
        for several in ((64, 512), (8,), (1,)):
            equal = [row for row in wide if row["groups"] == "equal" and row["r"] in several]
            cells = [spread([row for row in equal if row["direction"] == d], key) for d in TITLES]
            lines.append("| " + " | ".join([" and ".join(map(str, several)), *cells]) + " |")
        lines.append("")
    for limit, several in ((2, (64, 512)), (4, (8,))):
        asked = [row for row in wide if row["r"] in several]
        lines.append(missed(asked, "over_dense", f"over {limit} at {several} rows", partial(operator.lt, limit)))
    asked = [row for row in good if row["g"] >= 64 and row["ragged_dot_over_ours"]]
    lines.append(f"ragged_dot over ours from 64 groups on: {spread(asked, 'ragged_dot_over_ours')}")
    lines.append(missed(asked, "ragged_dot_over_ours", "under 15", partial(operator.gt, 15)))
    shapes = {row["shape"] for row in result["rows"]}
    skipped = {shape for call in result["measured"] for shape in call["skipped"]} - shapes
    lines.append(f"{len(shapes)} shapes, {len(skipped)} left out as too large")
    return "\n".join(lines)


def missed(rows: list[dict[str, Any]], key: str, what: str, is_missed: Callable[[float], bool]) -> str:
    """How many of the rows, and which."""
    named = [f"{row['shape']} {row['groups']} {row['direction']} {row[key]}" for row in rows if is_missed(row[key])]
    return f"{what}: {len(named)} of {len(rows)}" + "".join(f"\n  {name}" for name in named)


def numbers(row: dict[str, Any]) -> list[int]:
    """D, F, G and rows a group."""
    return [int(part.lstrip("DFGr")) for part in row["shape"].split("-")]


def draw(result: dict[str, Any]):
    """The chart of one device."""
    drawing, axes = plt.subplots(1, len(TITLES), figsize=(3.0 * len(TITLES), 3.6), sharey=True)
    for (direction, title), ax in zip(TITLES.items(), axes, strict=True):
        ratios: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
        for row in result["rows"]:
            if row["direction"] == direction and row["groups"] == "equal" and "over_dense" in row:
                _, f, _, rows = numbers(row)
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
    about = result["measured"][-1]
    drawing.suptitle(
        f"{about['implementation']} on {about['device']}, {about['dtype']}, {about['date']}",
        x=0.01,
        ha="left",
        fontweight="bold",
    )
    drawing.tight_layout()
    return drawing


if __name__ == "__main__":
    main()
