"""Words for what figures show: labels of measures, values of coordinates, and what a point says when pointed at."""

import re
from fractions import Fraction
from typing import Any
from xml.sax.saxutils import escape

from slicedice.grid.figures import AXES
from slicedice.report.statistics import Cell
from slicedice.report.tables import verdict

LABELS = {
    "loss": "held-out cross-entropy (nats)",
    "bits_per_byte": "held-out bits per byte",
    "without_capacity_loss": "held-out cross-entropy,\nno capacity (nats)",
    "train_loss": "train cross-entropy (nats)",
    "load_balancing_loss": "load-balancing loss",
    "load_imbalance": "load imbalance (max / mean)",
    "dropped_share": "share of assignments dropped",
    "dead_experts": "experts without a token",
}
SHORT = {"total_parameters": "total", "learning_rate": "rate"}


def label(measure: str) -> str:
    """What stands on the y axis."""
    for prefix, words in (("loss_", "cross-entropy (nats)"), ("bits_per_byte_", "bits per byte")):
        if measure.startswith(prefix):
            return f"{measure.removeprefix(prefix)}: {words}"
    if measure.startswith("accuracy_"):
        return f"{measure.removeprefix('accuracy_')} accuracy"
    return LABELS[measure]


def number(axis: str, value: float) -> str:
    """A number as people write it: granularities as fractions, big counts short."""
    if axis in ("g", "generalist"):
        return str(Fraction(value).limit_denominator(1024))
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if value >= 0.9995 * size:  # what rounds up to it
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def describe(coordinate: str, value: Any) -> str:
    """What a value of a coordinate is called in a legend or title; "" where there is nothing to say."""
    if coordinate == "generalist":
        return "no generalist" if value is None else f"generalist {number(coordinate, value)}"
    if value is None:
        return ""
    if coordinate == "wiring":
        return f"{value} wiring"
    if coordinate == "granularity":
        return f"g = {value}"
    if coordinate in AXES:
        return f"{SHORT.get(coordinate, coordinate)} = {number(coordinate, value)}"
    return str(value)


def tip(cell: Cell, measure: str, dense: Cell | None) -> str:
    """What a point says when it is pointed at."""
    row = cell.row
    margin = f" ± {cell.margin:.4f}" if cell.margin is not None else ""
    against = verdict(cell, dense)
    lines = [
        row["name"].rpartition("-seed")[0],
        f"{label(measure)}: {cell.mean:.4f}{margin}, {len(cell.values)} seed{'s' if len(cell.values) > 1 else ''}",
        f"against dense: {against}" if against else "",
        f"n {row['n']}, k {row['k']}, g {row['granularity']}, s {row['s']:g}",
        f"{number('', row['total_parameters'])} parameters, {number('', row['active_parameters'])} active, "
        f"{number('', row['tokens'])} tokens",
        row["settings"],
    ]
    return "\n".join(line.replace("\n", " ") for line in lines if line)


def with_tips(svg: str, tips: dict[str, str]) -> str:
    """The drawing with a title in each of its elements that has a tip, which browsers show under the pointer."""

    def titled(match: re.Match[str]) -> str:
        return f'<g id="{match[1]}" class="point"><title>{escape(tips[match[1]])}</title>'

    return re.sub(r'<g id="(tip-\d+)">', titled, svg)
