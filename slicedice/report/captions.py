"""Words for what figures show: labels of measures, values of coordinates, and what a point says when pointed at."""

from fractions import Fraction
from typing import Any
from xml.sax.saxutils import escape

from slicedice.grid.figures import AXES
from slicedice.report.statistics import Cell, difference

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
    free = measure.removeprefix("without_capacity_")
    if measure not in LABELS and free != measure:
        return f"{label(free)},\nno capacity"
    for prefix, words in (("loss_", "cross-entropy (nats)"), ("bits_per_byte_", "bits per byte")):
        if measure.startswith(prefix):
            return f"{measure.removeprefix(prefix)}: {words}"
    if measure.startswith("accuracy_normalised_"):
        return f"{measure.removeprefix('accuracy_normalised_')} accuracy, by length"
    if measure.startswith("accuracy_"):
        return f"{measure.removeprefix('accuracy_')} accuracy"
    return LABELS[measure]


def number(axis: str, value: float) -> str:
    """A number as people write it: granularities as fractions, learning rates as 4e-4, big counts short."""
    if axis in ("g", "generalist"):
        return str(Fraction(value).limit_denominator(1024))
    if axis == "learning_rate" and 0 < value < 0.1:
        mantissa, _, exponent = f"{value:e}".partition("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        # What rounds up to it; thousands are short of tokens and parameters alone.
        if value >= 0.9995 * size and (unit != "k" or (axis in ("tokens", "total_parameters") and value >= 1e4)):
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


def verdict(cell: Cell, dense: Cell | None) -> str:
    """The difference to dense and its 95 % interval, called what it is when seeds alone could make it."""
    if dense is None or cell is dense:
        return ""
    effect, margin = difference(cell, dense)
    unit = " octaves" if cell.is_ratio else ""
    if margin is None:
        return f"{effect:+.4f}{unit}"
    return f"{effect:+.4f} ± {margin:.4f}{unit}" + (" within noise" if abs(effect) <= margin else "")


def tip(cell: Cell, measure: str, dense: Cell | None) -> str:
    """What a point says when it is pointed at."""
    row = cell.row
    margin = f" ± {cell.margin:.4f}" if cell.margin is not None else ""
    if cell.is_ratio and cell.interval:
        margin = f" [{cell.interval[0]:.4f}, {cell.interval[1]:.4f}]"
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


def with_tips(svg: str, tips: list[tuple[float, float, str]]) -> str:
    """The drawing with a circle over each point that has a tip, which browsers show under the pointer.

    Args:
      svg: the drawing.
      tips: for each point x and y in the drawing's units, and what it says.
    """
    # Larger than the mark that the eye sees, for the pointer.
    circles = (
        f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="5.5"><title>{escape(text)}</title></circle>\n'
        for x, y, text in tips
    )
    start, end, rest = svg.rpartition("</svg>")
    return f'{start}<g fill-opacity="0">\n{"".join(circles)}</g>\n{end}{rest}'
