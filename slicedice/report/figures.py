"""Draws declared figures from rows: PNG for papers, SVG for screens, whose points tell what they are."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from slicedice.grid import Figure, Panel
from slicedice.grid.figures import AXES
from slicedice.report.captions import describe, label, number, tip, with_tips
from slicedice.report.results import FIELDS, Row
from slicedice.report.statistics import Cell, cells, dense_beside, student
from slicedice.store.files import write_whole

# Okabe and Ito's palette: told apart by colour-blind readers; markers tell lines apart in print as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B", "#7F7F7F")
MARKERS = "os^Dv<>pP"
DASHES = ("-", ":", "-.", (0, (5, 1)), (0, (1, 3)))

STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "slicedice",
    "savefig.bbox": "tight",
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
    across = [(panel, value) for panel in figure.panels for value in _values(figure.columns, rows)]
    over = figure.rows if figure.rows != figure.columns else ""
    down = _values(over, rows)
    width = 3.6 if len(across) <= 4 else 2.7
    with plt.rc_context(STYLE):
        drawing, axes = plt.subplots(
            len(down),
            len(across),
            figsize=(width * len(across), 3.6 * len(down)),
            sharey=False if figure.columns in OF_DENSE else "row",  # their losses are apart
            squeeze=False,
        )
        tips: dict[str, str] = {}
        for i, row_value in enumerate(down):
            for j, (panel, column_value) in enumerate(across):
                facet = {over: row_value, figure.columns: column_value}
                here = [row for row in rows if _is_in(row, facet)]
                part = _Part(figure, panel, facet, here, _styles(panel, rows), _arms(panel, rows, facet))
                # A row of the facets that make it is told by titles where there are several.
                parts = (panel.title, describe(figure.columns, column_value))
                parts += (describe(over, row_value),) if len(down) > 1 else ()
                axes[i][j].set_title(" · ".join(filter(None, parts)), loc="left", fontsize=9.5)
                _draw_part(part, axes[i][j], [cell for cell in measured if _is_in(cell.row, facet)], tips)
            axes[i][0].set_ylabel(label(figure.y))
        for j, (panel, _) in enumerate(across):
            axes[-1][j].set_xlabel(AXES[panel.x])
        scales = list(dict.fromkeys(row["scale"] for row in rows))
        title = f"{figure.title} · {', '.join(scales)}" if len(scales) < 3 else figure.title
        drawing.suptitle(title, x=0.01, ha="left", fontweight="bold")
        drawing.tight_layout()
        _legends(figure, drawing, axes)
        files = [folder / f"{figure.name}.png", folder / f"{figure.name}.svg"]
        for file in files:
            metadata = {"Date": None} if file.suffix == ".svg" else None
            content = io.BytesIO()
            drawing.savefig(content, format=file.suffix[1:], dpi=160, metadata=metadata)
            drawn = content.getvalue()
            write_whole(file, with_tips(drawn.decode(), tips) if file.suffix == ".svg" else drawn)
        plt.close(drawing)
    return files


@dataclass(frozen=True)
class _Part:
    """One panel at one value of each facet: its rows, and how its lines look."""

    figure: Figure
    panel: Panel
    facet: dict[str, Any]
    rows: list[Row]
    styles: dict[Any, tuple[str, str]]
    arms: list[tuple]


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
    return (value is not None, isinstance(value, str), value if value is not None else 0)


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


def _draw_part(part: _Part, ax: Axes, measured: list[Cell], tips: dict[str, str]) -> None:
    panel, by_cell = part.panel, {cell.row["cell"]: cell for cell in measured}
    ax.set_xscale("log", base=2)
    lines: dict[tuple, dict[str, Row]] = {}
    for row in part.rows:
        if not row["dense"]:
            key = (row[panel.hue], *_arm(panel, row, part.facet))
            lines.setdefault(key, {}).setdefault(row["cell"], row)
    noisy = any(cell.margin for cell in measured)
    for i, key in enumerate(sorted(lines, key=lambda key: (_order(key[0]), part.arms.index(key[1:])))):
        shift = (i - (len(lines) - 1) / 2) * min(0.07, 0.4 / len(lines)) if noisy else 0.0
        drawn = sorted(lines[key].values(), key=lambda row: row[panel.x])
        dash = DASHES[part.arms.index(key[1:]) % len(DASHES)]
        _line(part, ax, key, drawn, by_cell, dash, shift)
        for row in drawn:
            if cell := by_cell.get(row["cell"]):
                name = f"tip-{len(tips)}"
                tips[name] = tip(cell, part.figure.y, dense_beside(cell, measured))
                # A larger mark than the eye sees, for the pointer.
                ax.plot(row[panel.x] * 2**shift, cell.mean, "o", markersize=11, alpha=0, gid=name)
    dense = [cell for cell in measured if cell.row["dense"]]  # has no hue: what a hue would show, its label says
    for settings in sorted({_beside(cell.row, panel.x, *part.facet) for cell in dense}):
        members = [cell for cell in dense if _beside(cell.row, panel.x, *part.facet) == settings]
        _dense(panel, ax, members, measured, f"dense {settings}".strip())
    for row in part.rows:
        if row["state"] == "diverged" and not row["dense"]:
            color, marker = part.styles[row[panel.hue]]
            ax.plot(row[panel.x], 0.98, marker, color=color, fillstyle="none", transform=ax.get_xaxis_transform())
    ticks = sorted({r[panel.x] for r in part.rows if not r["dense"]} or {r[panel.x] for r in part.rows})
    ax.set_xticks(ticks, [number(panel.x, tick) for tick in ticks])
    ax.tick_params(axis="x", labelrotation=45 if len(ticks) > 7 else 0)
    ax.minorticks_off()
    if len(ticks) == 1:
        ax.set_xlim(ticks[0] / 1.5, ticks[0] * 1.5)


def _line(part: _Part, ax: Axes, key: tuple, drawn: list[Row], by_cell: dict[str, Cell], dash: Any, shift: float):
    """One line through its cells; those without a result break it."""
    hue, style, settings = key
    found = [by_cell.get(row["cell"]) for row in drawn]
    if not any(found):
        return
    color, marker = part.styles[hue]
    words = (describe(part.panel.hue, hue), describe(part.panel.style, style), settings)
    margins = [cell.margin or 0.0 if cell else 0.0 for cell in found]
    ax.errorbar(
        [row[part.panel.x] * 2**shift for row in drawn],  # shifted, so that bars do not lie over each other
        [cell.mean if cell else np.nan for cell in found],
        yerr=margins if any(margins) else None,
        color=color,
        marker=marker,
        markersize=5,
        linewidth=1.4,
        linestyle=dash,
        capsize=2.5,
        elinewidth=0.8,
        label=" ".join(filter(None, words)),
    )


def _dense(panel: Panel, ax: Axes, line: list[Cell], measured: list[Cell], label_: str) -> None:
    """Dense cells of one setting: a line across, or where the axis varies for them too, a line over it."""
    style: Any = {"color": "black", "linestyle": "--", "linewidth": 1.2, "label": label_}
    if len(line) > 1:
        line.sort(key=lambda cell: cell.row[panel.x])
        bars = [cell.margin or 0.0 for cell in line] if line[0].margin is not None else None
        ax.errorbar([cell.row[panel.x] for cell in line], [cell.mean for cell in line], yerr=bars, capsize=2.5, **style)
        return
    (cell,) = line
    ax.axhline(cell.mean, **style)
    if cell.noise:
        seeds = min(len(other.values) for other in measured)
        half = student(cell.noise.freedom) * cell.noise.deviation * (2 / seeds) ** 0.5
        ax.axhspan(cell.mean - half, cell.mean + half, color="black", alpha=0.07, linewidth=0)


def _legends(figure: Figure, drawing: Any, axes: np.ndarray) -> None:
    """Below the panels, since inside lines would run through it: one for all, or one for each declared panel."""
    groups = [[axes[:, j]] for j in range(axes.shape[1])] if len(figure.panels) > 1 else [[axes.ravel()]]
    for j, (group,) in enumerate(groups):
        handles: dict[str, Any] = {}
        for ax in group:
            handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
        if any(ax.patches for ax in group):
            handles["within noise of dense"] = Patch(color="black", alpha=0.1)
        if any(line.get_fillstyle() == "none" for ax in group for line in ax.lines):
            handles["diverged"] = Line2D([], [], color="black", marker="o", linestyle="", fillstyle="none")
        if not handles:
            continue
        place: Any = {"loc": "upper center", "fontsize": 7.5, "handlelength": 2.6, "columnspacing": 1.2}
        if len(groups) > 1:
            columns = 2 if max(map(len, handles)) < 22 else 1
            under = group[-1].get_tightbbox()
            bottom = group[-1].transAxes.inverted().transform((0, under.y0))[1] - 0.02
            axes[-1][j].legend(handles.values(), handles, bbox_to_anchor=(0.5, bottom), ncols=columns, **place)
        else:
            columns = max(2, min(len(handles), 2 * axes.shape[1]))
            drawing.legend(handles.values(), handles, bbox_to_anchor=(0.5, 0.0), ncols=columns, **place)


def _beside(row: Row, *shown: str) -> str:
    """The settings of a row that vary, beside those which these coordinates show."""
    fields = {field.split(".")[-1] for name in shown for field in FIELDS.get(name, (name,))}
    return " ".join(part for part in row["settings"].split() if part.partition("=")[0] not in fields)
