"""One HTML page that holds a report whole: figures, table, data. It opens offline and asks no one for anything."""

import re
from pathlib import Path

import jinja2
from markupsafe import Markup

from slicedice.report.results import Results, Row
from slicedice.report.statistics import cells, dense_beside
from slicedice.report.tables import verdict
from slicedice.store.files import write_whole


def write_page(path: Path, *, title: str, about: str, results: Results, figures: list[Path]) -> None:
    """Writes the page.

    Args:
      path: of the page.
      title: of the page.
      about: what the grid asks, from its file's docstring.
      results: rows and notes.
      figures: SVG files, which are put into the page.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("slicedice.report", ""), autoescape=True, undefined=jinja2.StrictUndefined
    )
    measured = cells(results.rows, "loss")
    page = environment.get_template("page.html.j2").render(
        title=title,
        about=[part.replace("\n", " ") for part in about.strip().split("\n\n")],
        notes=results.notes,
        figures=[_element(path) for path in figures],
        cells=[{"cell": cell, "verdict": verdict(cell, dense_beside(cell, measured))} for cell in measured],
        domains=_domains(results.rows),
        runs=results.rows,
        counts=_counts(results.rows),
        origin=next((row for row in results.rows if row.get("device")), None),
    )
    write_whole(path, page)


def _element(path: Path) -> Markup:
    """The figure as an element of the page: without its document type, and with ids that are its own."""
    svg = path.read_text(encoding="utf-8")
    own = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{path.stem}-", svg[svg.index("<svg") :])
    return Markup(own)


def _domains(rows: list[Row]) -> list[str]:
    names = {name for row in rows for name in row if name.startswith("loss_")}
    return sorted(name.removeprefix("loss_") for name in names)


def _counts(rows: list[Row]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["state"]] = counts.get(row["state"], 0) + 1
    return counts
