"""Where panels, labels and legends of a drawing lie, in one pass: measuring all texts takes as long as drawing them.

Titles and legends are measured, and of the many labels of ticks the characters are counted: they hold little but
digits. Panels of all figures have one of two sizes, and a drawing is as large as what stands around them needs.
"""

import math
import re
import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend

FONT, SMALL, HEADING = 9.0, 7.5, 10.8
"""Points: of labels and ticks, of legends, of titles."""
DIGIT = 0.64
"""Width of DejaVu Sans's digits in their font size."""
MANY = 4
"""Panels that lie side by side at most: a single line of more is broken, and those of several lines are narrow."""
WIDE, NARROW, HEIGHT = 3.1, 2.2, 2.6
"""Inches of a panel's frame."""
GAP, LINE, EDGE = 0.18, 0.17, 0.1
"""Inches between two panels, from one line of text to the next, and around the drawing."""


def broken(panels: list[Any]) -> list[list[Any]]:
    """Panels side by side, as lines of equal length where they are too many for one."""
    length = math.ceil(len(panels) / math.ceil(len(panels) / MANY))
    return [panels[i : i + length] for i in range(0, len(panels), length)]


def inches(label: str) -> float:
    """The width of a tick's label, at most."""
    return len(label) * DIGIT * FONT / 72


def lay_out(drawing: Drawing, axes: np.ndarray, *, title: str, shared: bool, legends: list[Legend]) -> None:
    """Gives panels, labels and legends their places, and the drawing its size.

    Args:
      drawing: whose panels hold all that they are to show.
      axes: panels [lines, columns]; None where a line has no more.
      title: above all panels.
      shared: whether panels beside each other have the same y axis, whose ticks only the first labels.
      legends: one for each column, or a single one for all; below the panels.
    """
    width = WIDE if axes.shape[1] <= MANY else NARROW
    drawing.set_size_inches(width, HEIGHT)  # as large as one frame: how many ticks there are depends on its size
    for ax in filter(None, axes.flat):
        ax.set_position((0, 0, 1, 1))
    boxes = [legend.get_window_extent(_renderer(drawing)) for legend in legends]
    sizes = [(box.width / drawing.get_dpi(), box.height / drawing.get_dpi()) for box in boxes]
    rooms = [max(_y_room(ax) for ax in column if ax) for column in axes.T]
    lefts = _lefts(axes, width, rooms, shared, [size for size, _ in sizes])
    right = lefts[-1] + width
    centres = [left + width / 2 for left in lefts] if len(legends) > 1 else [max(right / 2, EDGE + sizes[0][0] / 2)]
    total_width = max(right, centres[-1] + sizes[-1][0] / 2) + EDGE
    title = _fitted(drawing, title, total_width - 2 * EDGE, FontProperties(size=HEADING, weight="bold"))
    frames, ticks, bottom = _lines(drawing, axes, width, EDGE + 0.2 * len(title.split("\n")) + 0.08)
    total = bottom + max(height for _, height in sizes) + EDGE

    drawing.set_size_inches(total_width, total)
    heading: Any = {"fontsize": HEADING, "fontweight": "bold", "ha": "left", "va": "top"}
    drawing.suptitle(title, x=EDGE / total_width, y=1 - EDGE / total, **heading)
    for (i, j), ax in np.ndenumerate(axes):
        if ax:
            place = (lefts[j], total - frames[i] - HEIGHT, width, HEIGHT)
            ax.set_position([a / b for a, b in zip(place, (total_width, total) * 2, strict=True)])
            ax.yaxis.set_label_coords(-(rooms[j] + 0.04) / width, 0.5)
            ax.xaxis.set_label_coords(0.5, -(ticks[i] + 0.03) / HEIGHT)
    for legend, centre in zip(legends, centres, strict=True):
        legend.set_loc("upper center")
        legend.set_bbox_to_anchor((centre / total_width, 1 - bottom / total), transform=drawing.transFigure)


def _lefts(axes: np.ndarray, width: float, rooms: list[float], shared: bool, legends: list[float]) -> list[float]:
    """Where the frames of each column begin, in inches; `rooms` is for ticks, `legends` how wide these are."""
    lefts = [EDGE + LINE * len(axes[0, 0].get_ylabel().split("\n")) + rooms[0]]
    if len(legends) > 1:  # each centred below its panel
        lefts[0] = max(lefts[0], EDGE + (legends[0] - width) / 2)
    for j in range(1, len(rooms)):
        pitch = width + GAP + (0 if shared else rooms[j])
        beside = (legends[j - 1] + legends[j]) / 2 + GAP if len(legends) > 1 else 0
        lefts.append(lefts[-1] + max(pitch, beside))
    return lefts


def _lines(drawing: Drawing, axes: np.ndarray, width: float, y: float) -> tuple[list[float], list[float], float]:
    """Where the frames of each line begin, in inches from above, how much their ticks take, and where all end.

    Titles that are longer than their panel are broken, and ticks turned that would touch.
    """
    frames, ticks = [], []
    for line in axes:
        here = [ax for ax in line if ax]
        titles = [_fitted(drawing, ax.get_title("left"), width, FontProperties(size=FONT)) for ax in here]
        for ax, title in zip(here, titles, strict=True):
            ax.set_title(title, loc="left", y=1.0, pad=5, fontsize=FONT)
        frames.append(y + LINE * max(len(title.splitlines()) for title in titles) + 0.06)
        ticks.append(max(_fit_ticks(ax, width) for ax in here))
        y = frames[-1] + HEIGHT + ticks[-1] + (LINE if any(ax.get_xlabel() for ax in here) else 0) + 0.12
    return frames, ticks, y + 0.06


def legend_columns(drawing: Drawing, labels: list[str], width: float) -> int:
    """How many columns of a legend fit into `width` inches, with lines as equal as they can be."""
    em = SMALL / 72
    entry = max(_width(drawing, label, FontProperties(size=SMALL)) for label in labels) + 3.4 * em  # the line, a gap
    fitting = max(1, int((width + 1.2 * em) / (entry + 1.2 * em)))
    return math.ceil(len(labels) / math.ceil(len(labels) / fitting))


def _fitted(drawing: Drawing, text: str, width: float, font: FontProperties) -> str:
    """The text in lines that `width` inches hold; what is equal to what, and what is apart by a dot, stays together."""
    whole = _width(drawing, text, font)
    if whole <= width:
        return text
    tied = re.sub(r" (=|·)", "\u00a0\\1", text).replace("= ", "=\u00a0")
    return textwrap.fill(tied, int(0.93 * width / whole * len(text))).replace("\u00a0", " ")  # some lines are wider


def _renderer(drawing: Drawing) -> Any:
    return drawing.canvas.get_renderer()  # type: ignore[attr-defined] - Agg's canvas has it


def _width(drawing: Drawing, text: str, font: FontProperties) -> float:
    """Inches that a text of one line is long."""
    return _renderer(drawing).get_text_width_height_descent(text, font, False)[0] / drawing.get_dpi()


def _y_room(ax: Axes) -> float:
    """Inches that the ticks of a y axis take with their labels."""
    labels = ax.yaxis.get_major_formatter().format_ticks(list(ax.yaxis.get_majorticklocs()))
    return 0.1 + max(inches(label) for label in labels)


def _fit_ticks(ax: Axes, width: float) -> float:
    """Turns labels of ticks on a logarithmic x axis that would touch; returns the inches that they take."""
    ticks, labels = ax.get_xticks(), [label.get_text() for label in ax.get_xticklabels()]
    low, high = np.log2(ax.get_xlim())
    places = (np.log2(ticks) - low) / (high - low) * width
    wide = np.array([inches(label) for label in labels])
    if (np.diff(places) >= (wide[1:] + wide[:-1]) / 2 + 0.05).all():
        return 0.1 + LINE
    ax.tick_params(axis="x", labelrotation=45)
    return 0.1 + float(wide.max() + LINE) * math.sqrt(0.5)
