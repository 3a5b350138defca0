"""Draws declared figures from rows: PNG for screens and papers, SVG for the page."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from slicedice.grid import Figure, Panel
from slicedice.grid.figures import AXES
from slicedice.report.results import Row
from slicedice.report.statistics import Cell, cells
from slicedice.store.files import write_whole

# Okabe and Ito's palette: told apart by colour-blind readers; markers tell lines apart in print as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B", "#7F7F7F")
MARKERS = "os^Dv<>pP"
DASHES = ("-", ":", "-.")

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

SETTINGS = {"tokens": "steps"}
"""Axes that settings have by another name."""

LABELS = {"loss": "held-out cross-entropy (nats)", "train_loss": "train cross-entropy (nats)"}


def draw(figure: Figure, rows: list[Row], folder: Path) -> list[Path]:
    """Draws `figure` as PNG and SVG into `folder`; returns the files.

    Error bars are 95 % intervals (Student's t), with the noise pooled over cells. Runs that are not
    done are gaps; those that diverged are open markers at the panel's upper edge.
    """
    measured = cells(rows, figure.y)
    with plt.rc_context(STYLE):
        drawing, axes = plt.subplots(
            1, len(figure.panels), figsize=(3.6 * len(figure.panels), 4.2), sharey=True, squeeze=False
        )
        for panel, ax in zip(figure.panels, axes[0], strict=True):
            _panel(panel, ax, measured, rows)
        axes[0][0].set_ylabel(LABELS.get(figure.y, figure.y.replace("_", " ")))
        scales = sorted({row["scale"] for row in rows})
        drawing.suptitle(f"{figure.title} · {', '.join(scales)}", x=0.01, ha="left", fontweight="bold")
        drawing.tight_layout()
        files = [folder / f"{figure.name}.png", folder / f"{figure.name}.svg"]
        for file in files:
            metadata = {"Date": None} if file.suffix == ".svg" else None
            content = io.BytesIO()
            drawing.savefig(content, format=file.suffix[1:], dpi=160, metadata=metadata)
            write_whole(file, content.getvalue())
        plt.close(drawing)
    return files


def _panel(panel: Panel, ax: Axes, measured: list[Cell], rows: list[Row]) -> None:
    routed = [cell for cell in measured if not cell.row["dense"]]
    ax.set_title(panel.title, loc="left")
    ax.set_xlabel(AXES[panel.x])
    ax.set_xscale("log", base=2)
    hues = sorted({row[panel.hue] for row in rows if not row["dense"]})
    style = {hue: (COLORS[i % len(COLORS)], MARKERS[i % len(MARKERS)], i // len(COLORS)) for i, hue in enumerate(hues)}
    # Cells of other settings make lines of their own: what a line joins differs in its axis alone.
    shown = (panel.x, panel.hue)
    arms = sorted({_beside(cell, *shown) for cell in routed})
    for hue, settings in sorted({(cell.row[panel.hue], _beside(cell, *shown)) for cell in routed}):
        line = [c for c in routed if (c.row[panel.hue], _beside(c, *shown)) == (hue, settings)]
        line.sort(key=lambda cell: cell.row[panel.x])
        color, marker, dash = style[hue]
        ax.errorbar(
            [cell.row[panel.x] for cell in line],
            [cell.mean for cell in line],
            yerr=[cell.margin or 0.0 for cell in line] if line[0].margin is not None else None,
            color=color,
            marker=marker,
            markersize=5,
            linewidth=1.4,
            linestyle=DASHES[(dash + arms.index(settings)) % len(DASHES)],
            capsize=2.5,
            label=f"{panel.hue} = {_number(panel.hue, hue)} {settings}".strip(),
        )
    dense = [cell for cell in measured if cell.row["dense"]]  # has no hue: what a hue would show, its label says
    for settings in sorted({_beside(cell, panel.x) for cell in dense}):
        _dense(panel, ax, [cell for cell in dense if _beside(cell, panel.x) == settings], f"dense {settings}".strip())
    for row in rows:
        if row["state"] == "diverged" and not row["dense"]:
            color, marker, _ = style[row[panel.hue]]
            ax.plot(row[panel.x], 0.98, marker, color=color, fillstyle="none", transform=ax.get_xaxis_transform())
    ticks = sorted({row[panel.x] for row in rows if not row["dense"]} or {row[panel.x] for row in rows})
    ax.set_xticks(ticks, [_number(panel.x, tick) for tick in ticks])
    ax.minorticks_off()
    if ax.get_legend_handles_labels()[0]:
        # Below the panel: inside, it would hide points wherever lines run.
        ax.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.19), ncols=3, fontsize=7.5, handlelength=1.6, columnspacing=1.2
        )


def _dense(panel: Panel, ax: Axes, line: list[Cell], label: str) -> None:
    """Dense cells of one setting: a line across, or where the axis varies for them too, a line over it."""
    style: Any = {"color": "black", "linestyle": "--", "linewidth": 1.2, "label": label}
    if len(line) > 1:
        line.sort(key=lambda cell: cell.row[panel.x])
        bars = [cell.margin or 0.0 for cell in line] if line[0].margin is not None else None
        ax.errorbar([cell.row[panel.x] for cell in line], [cell.mean for cell in line], yerr=bars, capsize=2.5, **style)
        return
    (cell,) = line
    ax.axhline(cell.mean, **style)
    if cell.margin:
        ax.axhspan(cell.mean - cell.margin, cell.mean + cell.margin, color="black", alpha=0.07)


def _beside(cell: Cell, *shown: str) -> str:
    """The settings of a cell that vary, beside those which these axes show."""
    names = {SETTINGS.get(axis, axis) for axis in shown}
    return " ".join(part for part in cell.row["settings"].split() if part.partition("=")[0] not in names)


def _number(axis: str, value: float) -> str:
    """A tick or hue as people write it: granularities as fractions, big counts short."""
    if axis == "g":
        return str(Fraction(value).limit_denominator(1024))
    if value >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value:g}"
