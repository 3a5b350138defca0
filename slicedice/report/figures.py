"""Draws declared figures from rows: PNG for papers, SVG for screens, whose points tell what they are."""

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FormatStrFormatter

from slicedice.grid import Figure, Panel
from slicedice.grid.figures import AXES
from slicedice.report.captions import describe, label, number, tip, with_tips
from slicedice.report.layout import FONT, MANY, NARROW, SMALL, WIDE, broken, lay_out, legend_columns
from slicedice.report.results import FIELDS, Row
from slicedice.report.statistics import RATIOS, Cell, cells, dense_beside, student
from slicedice.store.files import write_whole

# Okabe and Ito's palette, told apart by colour-blind readers, and what is as far from it as it needs to be for the 13
# counts of the study's heterogeneous figure; markers tell lines apart in print as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B", "#7F7F7F")
COLORS += ("#AA0000", "#4D9221", "#6A3D9A", "#DDCC77")
MARKERS = "os^Dv<>pPX*"
DASHES = ("-", ":", "-.", (0, (5, 1)), (0, (1, 3)))

STYLE: Any = {
    "font.size": FONT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "slicedice",
}

OF_DENSE = ("scale", "tokens", "learning_rate")
"""Facets that part dense models too; by the others they belong into every panel."""


def draw(figure: Figure, rows: list[Row], folder: Path, everything: list[Row] | None = None) -> list[Path]:
    """Draws `figure` as PNG and SVG into `folder`; returns the files.

    Error bars are 95 % intervals (Student's t) for comparing cells, with the noise pooled over the cells of a scale and
    budget; what lies in the band around the dense line is within noise of it. Runs that are not done are gaps; those
    that diverged are open markers at the panel's upper edge.

    Args:
      figure: what to draw.
      rows: the runs it reads.
      folder: of the files.
      everything: the rows that the noise is known from; `rows` if None.
    """
    measured = cells(rows, figure.y, everything)
    places, together = _places(figure, rows)
    with plt.rc_context(STYLE):
        drawing, axes = plt.subplots(len(places), len(places[0]), sharey=together, squeeze=False)
        shown: dict[Axes, _Shown] = {}
        # Over all rows, so that panels agree.
        looks = {panel: (_styles(panel, rows), _arms(panel, rows, places[0][0].facet)) for panel in figure.panels}
        for (i, j), ax in np.ndenumerate(axes):
            if j >= len(places[i]):
                ax.remove()
                axes[i, j] = None
                continue
            panel, facet, title = places[i][j]
            here = [row for row in rows if _is_in(row, facet)]
            part = _Part(figure, panel, facet, here, *looks[panel])
            ax.set_title(title, loc="left")
            shown[ax] = _draw_part(part, ax, [cell for cell in measured if _is_in(cell.row, facet)])
            ax.set_ylabel(label(figure.y) if j == 0 else "")
            ax.set_xlabel(AXES[panel.x] if i == len(places) - 1 or j >= len(places[i + 1]) else "")
        scales = list(dict.fromkeys(row["scale"] for row in rows))
        title = f"{figure.title} · {', '.join(scales)}" if len(scales) < 3 else figure.title
        legends = _legends(figure, drawing, axes, shown)
        lay_out(drawing, axes, title=title, shared=bool(together), legends=legends)
        files = [folder / f"{figure.name}.png", folder / f"{figure.name}.svg"]
        for file in files:
            metadata = {"Date": None} if file.suffix == ".svg" else None
            content = io.BytesIO()
            drawing.savefig(content, format=file.suffix[1:], dpi=160, metadata=metadata)
            drawn = content.getvalue()
            write_whole(file, with_tips(drawn.decode(), _tips(drawing, shown)) if file.suffix == ".svg" else drawn)
        plt.close(drawing)
    return files


class _Place(NamedTuple):
    """What one panel is to show: a declared panel, the value of each facet, and its title."""

    panel: Panel
    facet: dict[str, Any]
    title: str


def _places(figure: Figure, rows: list[Row]) -> tuple[list[list[_Place]], Any]:
    """The panels line by line, and which of them share a y axis, as matplotlib calls it.

    What one facet alone repeats is side by side, in several lines where it is too much for one.
    """
    over = figure.rows if figure.rows != figure.columns else ""
    down, places = _values(over, rows), []
    for row_value in down:
        places.append([])
        for panel in figure.panels:
            for column_value in _values(figure.columns, rows):
                # A line of the facets that make it is told by titles where there are several.
                words = [panel.title, describe(figure.columns, column_value)]
                words += [describe(over, row_value)] if len(down) > 1 else []
                facet = {over: row_value, figure.columns: column_value}
                places[-1].append(_Place(panel, facet, " · ".join(filter(None, words))))
    repeats = figure.columns if len(down) == 1 else over
    if len(figure.panels) == 1 and 1 in (len(down), len(places[0])):
        return broken([place for line in places for place in line]), repeats not in OF_DENSE and "all"
    return places, figure.columns not in OF_DENSE and "row"  # losses of scales and budgets are apart


@dataclass(frozen=True)
class _Part:
    """One panel at one value of each facet: its rows, and how its lines look."""

    figure: Figure
    panel: Panel
    facet: dict[str, Any]
    rows: list[Row]
    styles: dict[Any, tuple[str, str]]
    arms: list[tuple]


@dataclass
class _Shown:
    """What a panel shows: labels of its lines by their order in legends, and points with what they say."""

    labels: dict[tuple, str] = field(default_factory=dict)
    points: list[tuple[float, float]] = field(default_factory=list)
    tips: list[str] = field(default_factory=list)


def _values(facet: str, rows: list[Row]) -> list[Any]:
    """What a facet runs over; scales in the order of the plan, others in their own."""
    if not facet:
        return [None]
    values = list(dict.fromkeys(row[facet] for row in rows if facet in OF_DENSE or not row["dense"]))
    return (values if facet == "scale" else sorted(values, key=_order)) or [None]


def _is_in(row: Row, facet: dict[str, Any]) -> bool:
    return all(
        not name or row[name] == value or (row["dense"] and name not in OF_DENSE) for name, value in facet.items()
    )


def _order(value: Any) -> tuple:
    """Sorts values of a coordinate: None first, and texts by the numbers in them."""
    if isinstance(value, str):
        numbers = re.findall(r"\d+/[1-9]\d*|\d+(?:\.\d+)?(?:e[+-]?\d+)?", value)
        return True, True, (tuple(map(Fraction, numbers)), value)
    return value is not None, False, value if value is not None else 0


def _styles(panel: Panel, rows: list[Row]) -> dict[Any, tuple[str, str]]:
    """Colour and marker of each hue: over all rows, so that panels agree and lines keep theirs."""
    hues = sorted({row[panel.hue] for row in rows if not row["dense"]}, key=_order)
    # Past the last colour they begin again, each with another marker than before.
    looks = [(COLORS[i % len(COLORS)], MARKERS[(i + i // len(COLORS)) % len(MARKERS)]) for i in range(len(hues))]
    return dict(zip(hues, looks, strict=True))


def _arms(panel: Panel, rows: list[Row], facet: Iterable[str]) -> list[tuple]:
    """Styles and settings that lines may have, in the order of dashes: over all rows, so that panels agree.

    Cells of other settings make lines of their own: what a line joins differs in its axis alone.
    """
    arms = sorted({_arm(panel, row, facet) for row in rows if not row["dense"]}, key=lambda arm: arm[1])
    # Solid is the first: homogeneous before heterogeneous, dropless before default, plain before parallel.
    arms.sort(key=lambda arm: _order(arm[0]), reverse=any(isinstance(style, str) for style, _ in arms))
    return sorted(arms, key=lambda arm: arm[0] is not None)


def _arm(panel: Panel, row: Row, facet: Iterable[str]) -> tuple[Any, str]:
    style = row[panel.style] if panel.style else None
    return style, _beside(row, panel.x, panel.hue, panel.style, *facet)


def _draw_part(part: _Part, ax: Axes, measured: list[Cell]) -> _Shown:
    panel, by_cell, shown = part.panel, {cell.row["cell"]: cell for cell in measured}, _Shown()
    ax.set_xscale("log", base=2)
    if part.figure.y in RATIOS:
        ax.set_yscale("log", base=2)
        ax.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    lines: dict[tuple, dict[str, Row]] = {}
    for row in part.rows:
        if not row["dense"]:
            key = (row[panel.hue], *_arm(panel, row, part.facet))
            lines.setdefault(key, {}).setdefault(row["cell"], row)
    noisy = any(cell.margin for cell in measured)
    dense = [cell for cell in measured if cell.row["dense"]]  # has no hue: what a hue would show, its label says
    for settings in sorted({_beside(cell.row, panel.x, *part.facet) for cell in dense}):
        members = [cell for cell in dense if _beside(cell.row, panel.x, *part.facet) == settings]
        shown.labels[0, settings] = f"dense {settings}".strip()
        _dense(panel, ax, members, measured, shown.labels[0, settings])
    orders = {key: (_order(key[0]), part.arms.index(key[1:])) for key in lines}
    for i, key in enumerate(sorted(lines, key=orders.__getitem__)):
        shift = (i - (len(lines) - 1) / 2) * min(0.07, 0.4 / len(lines)) if noisy else 0.0
        drawn = sorted(lines[key].values(), key=lambda row: row[panel.x])
        found = [(row[panel.x] * 2**shift, by_cell.get(row["cell"])) for row in drawn]
        if any(cell for _, cell in found):
            shown.labels[1, *orders[key]] = _line(part, ax, key, found)
        for x, cell in found:
            if cell:
                shown.points.append((x, cell.mean))
                shown.tips.append(tip(cell, part.figure.y, dense_beside(cell, measured)))
    for row in part.rows:
        if row["state"] == "diverged" and not row["dense"]:
            color, marker = part.styles[row[panel.hue]]
            ax.plot(row[panel.x], 0.98, marker, color=color, fillstyle="none", transform=ax.get_xaxis_transform())
    ticks = sorted({r[panel.x] for r in part.rows if not r["dense"]} or {r[panel.x] for r in part.rows})
    ax.set_xticks(ticks, [number(panel.x, tick) for tick in ticks])
    ax.minorticks_off()
    if len(ticks) == 1:
        ax.set_xlim(ticks[0] / 1.5, ticks[0] * 1.5)
    return shown


def _line(part: _Part, ax: Axes, key: tuple, found: list[tuple[float, Cell | None]]) -> str:
    """One line through its cells; those without a result break it. Returns its label."""
    hue, style, settings = key
    color, marker = part.styles[hue]
    words = (describe(part.panel.hue, hue), describe(part.panel.style, style), settings)
    line = ax.errorbar(
        [x for x, _ in found],  # shifted, so that bars do not lie over each other
        [cell.mean if cell else np.nan for _, cell in found],
        yerr=_bars([cell for _, cell in found]),
        color=color,
        marker=marker,
        markersize=5,
        linewidth=1.4,
        linestyle=DASHES[part.arms.index((style, settings)) % len(DASHES)],
        capsize=2.5,
        elinewidth=0.8,
        label=" ".join(filter(None, words)),
    )
    return str(line.get_label())


def _bars(found: Sequence[Cell | None]) -> np.ndarray | None:
    """What error bars reach below and above the means, [2, cells]; None if no noise is known."""
    ends = [cell.interval or (cell.mean, cell.mean) if cell else (0.0, 0.0) for cell in found]
    means = [cell.mean if cell else 0.0 for cell in found]
    bars = np.abs(np.array(ends) - np.array(means)[:, None]).T
    return bars if bars.any() else None


def _dense(panel: Panel, ax: Axes, line: list[Cell], measured: list[Cell], label_: str) -> None:
    """Dense cells of one setting: a line across, or where the axis varies for them too, a line over it."""
    style: Any = {"color": "black", "linestyle": "--", "linewidth": 1.2, "label": label_}
    if len(line) > 1:
        line.sort(key=lambda cell: cell.row[panel.x])
        x, y = [cell.row[panel.x] for cell in line], [cell.mean for cell in line]
        ax.errorbar(x, y, yerr=_bars(line), capsize=2.5, **style)
        return
    (cell,) = line
    ax.axhline(cell.mean, **style)
    if cell.noise:
        seeds = min(len(other.values) for other in measured)
        half = student(cell.noise.freedom) * cell.noise.deviation * (2 / seeds) ** 0.5
        ax.axhspan(cell.mean - half, cell.mean + half, color="black", alpha=0.07, linewidth=0)


def _legends(figure: Figure, drawing: Any, axes: np.ndarray, shown: dict[Axes, _Shown]) -> list[Legend]:
    """Outside of panels, since lines would run through it: one for all, or one for each declared panel."""
    groups = list(axes.T) if len(figure.panels) > 1 else [axes.ravel()]
    width = (WIDE if axes.shape[1] <= MANY else NARROW) + (0.4 if len(groups) == 1 else 0.1)
    legends = []
    for group in groups:
        here, handles = [ax for ax in group if ax], {}
        for ax in here:
            handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        labels = {key: text for ax in here for key, text in shown[ax].labels.items()}
        handles = {labels[key]: handles[labels[key]] for key in sorted(labels)}
        if any(ax.patches for ax in here):
            handles["within noise of dense"] = Patch(color="black", alpha=0.1)
        if any(line.get_fillstyle() == "none" for ax in here for line in ax.lines):
            handles["diverged"] = Line2D([], [], color="black", marker="o", linestyle="", fillstyle="none")
        handles = handles or {"no run is done": Line2D([], [], linestyle="")}
        look: Any = {"fontsize": SMALL, "handlelength": 2.6, "columnspacing": 1.2, "borderaxespad": 0.0}
        look["ncols"] = legend_columns(drawing, list(handles), width * (1 if len(groups) > 1 else axes.shape[1]))
        owner = here[-1] if len(groups) > 1 else drawing
        legends.append(owner.legend(handles.values(), handles, **look))
    return legends


def _tips(drawing: Any, shown: dict[Axes, _Shown]) -> list[tuple[float, float, str]]:
    """Where points lie in the drawing as SVG, in points of 1/72 inch from its upper left corner, and what they say."""
    height, unit, found = drawing.get_figheight() * 72, 72 / drawing.get_dpi(), []
    for ax, panel in shown.items():
        if panel.points:
            places = ax.transData.transform(np.array(panel.points)) * unit
            found += [(x, height - y, text) for (x, y), text in zip(places.tolist(), panel.tips, strict=True)]
    return found


def _beside(row: Row, *shown: str) -> str:
    """The settings of a row that vary, beside those which these coordinates show."""
    fields = {field.split(".")[-1] for name in shown for field in FIELDS.get(name, (name,))}
    return " ".join(part for part in row["settings"].split() if part.partition("=")[0] not in fields)
