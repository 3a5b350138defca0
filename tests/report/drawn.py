"""What tests of drawn figures share: small layers to draw, and what a drawing shows."""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.lines import Line2D

from slicedice.grid import Panel

OVER_N = Panel("", "n", "g")
BIG = {"scale": "big", "model.d_model": 32}  # its name is before "tiny" in the alphabet
LAYERS = [{"model.experts": f"n={n} g={g}"} for n in (8, 16) for g in ("1/2", "1/4")]  # n > k: routers choose
DEFAULT = {"router.kind": "default"}
SVG = "{http://www.w3.org/2000/svg}"
Tip = tuple[float, float, str]


def tips_in(svg: Path) -> list[Tip]:
    found = []
    for element in ET.fromstring(svg.read_text(encoding="utf-8")).iter():
        if element.get("class") == "point":
            title = element.find(f"{SVG}title")
            assert title is not None
            found.append((float(element.get("cx") or "nan"), float(element.get("cy") or "nan"), str(title.text)))
    return found


def lines(ax: Axes) -> dict[str, Line2D]:
    return {str(c.get_label()): c.lines[0] for c in ax.containers if isinstance(c, ErrorbarContainer)}


def places(ax: Axes, points: np.ndarray) -> np.ndarray:
    """Where points of a panel [N, 2] lie in its drawing as SVG, which counts from above and in 1/72 inch."""
    drawing = ax.get_figure()
    assert isinstance(drawing, MatplotlibFigure)
    height = drawing.get_figheight()
    return (ax.transData.transform(points) / drawing.get_dpi() * [1, -1] + [0, height]) * 72
