"""Draws stored ratios against their targets: a panel for each device, a bar for each ratio that has one."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.catalogue import BENCHMARKS
from benchmarks.records import Record
from slicedice.report.figures import COLORS, STYLE

PATH = Path(__file__).parent.parent / "docs" / "performance.svg"
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
ROW, HEAD = 0.24, 0.75
"""Inches that a bar takes, and a panel beside its bars."""
MOST_SHOWN = 8
"""Ratios of one benchmark; of more, those nearest to their targets, or furthest behind."""
MET, MISSED = COLORS[0], COLORS[1]
SIGNS = {"higher": "≥", "lower": "≤", "one": "within ×"}
Bar = tuple[str, float, str]
"""A label, how many times as good as its target a ratio is, and the ratio beside its target in words."""


def write(records: list[Record]) -> str:
    """Draws the records into docs/; returns what was done, in words."""
    panels = {device: found for device, own in _by_device(records).items() if (found := bars(own))}
    if not panels:
        return "nothing is stored that has a target: python -m benchmarks --group quick --save"
    with plt.rc_context(STYLE):
        draw(panels).savefig(PATH, metadata={"Date": None})
    return f"{PATH}: {sum(map(len, panels.values()))} ratios of {len(panels)} devices"


def bars(records: list[Record]) -> list[Bar]:
    """Those of one device, in the catalogue's order."""
    by_name = {record["benchmark"]: record for record in records}
    found = []
    for benchmark in BENCHMARKS:
        own: list[Bar] = []
        for name, ratio in by_name.get(benchmark.name, {"ratios": {}})["ratios"].items():
            bound = benchmark.bound(name)
            if bound.target is not None and ratio > 0:
                text = f"{ratio:.3g} ({SIGNS[bound.better]} {bound.target:g})"
                own.append((f"{benchmark.name}: {name}", 1 / bound.worse(ratio, bound.target), text))
        worst = sorted(own, key=lambda bar: bar[1])[:MOST_SHOWN]
        found += [bar for bar in own if bar in worst]
    return found


def draw(panels: dict[str, list[Bar]]) -> Figure:
    """The chart: bars to the right of the line meet their target."""
    heights = [len(found) * ROW + HEAD for found in panels.values()]
    drawing, axes = plt.subplots(
        len(panels), 1, figsize=(9.5, sum(heights) + 0.3), height_ratios=heights, squeeze=False, layout="constrained"
    )
    reach = [times for found in panels.values() for _, times, _ in found]
    low, high = min(0.5, *reach) / 1.2, max(2.0, *reach) * 2.2  # room for the text right of the longest bar
    for ax, (device, found) in zip(axes[:, 0], panels.items(), strict=True):
        places = np.arange(len(found))
        times = np.array([times for _, times, _ in found])
        ax.barh(places, times - 1, left=1, height=0.7, color=[MET if t >= 1 else MISSED for t in times])
        for place, (_, value, text) in zip(places, found, strict=True):
            ax.annotate(text, (max(value, 1), place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        ax.axvline(1, color="black", linewidth=1)
        ax.set_xscale("log")
        ax.set_xlim(low, high)
        ax.set_xticks([tick for tick in TICKS if low <= tick <= high])
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_yticks(places, [label for label, _, _ in found], fontsize=8)
        ax.set_ylim(len(found) - 0.4, -0.6)
        ax.grid(visible=False, axis="y")
        ax.set_axisbelow(True)
        ax.tick_params(axis="y", length=0)
        ax.set_title(device, loc="left", fontweight="bold")
    axes[-1, 0].set_xlabel("times as good as the target, which is the line; beside each bar, the ratio and its target")
    return drawing


def _by_device(records: list[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record["device"], []).append(record)
    return found
