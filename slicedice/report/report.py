"""The whole report of a grid: tables, figures and the page, in one folder of the store."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from slicedice.grid import Figure, Plan
from slicedice.report.claims import Judgement, judge
from slicedice.report.figures import draw
from slicedice.report.page import write_page
from slicedice.report.results import Results, read_results, settings, write_tables
from slicedice.store import Store
from slicedice.store.files import write_json


def write_report(
    plan: Plan, store: Store, *, grid: str, scale: str, about: str
) -> tuple[Results, list[Judgement], Path]:
    """Reads the runs of `plan` and writes their report.

    Args:
      plan: the grid's runs.
      store: where they are.
      grid: name of the grid.
      scale: name of the scale.
      about: what the grid asks.

    Returns:
      The results, what they say of the study's claims, and the page.
    """
    results, folder = read_results(plan, store), store.report(report_name(f"{grid}-{scale}", plan.asked))
    write_tables(results, folder)
    drawn = [_draw(figure, plan, results, folder) for figure in plan.figures.values()]
    svgs = [file for files in drawn for file in files if file.suffix == ".svg"]
    page, claims = folder / "index.html", judge(results.rows)
    write_json(folder / "claims.json", [judgement.as_dict() for judgement in claims])
    write_page(page, title=f"{grid} at {scale}", about=about, plan=plan, results=results, figures=svgs, claims=claims)
    return results, claims, page


def _draw(figure: Figure, plan: Plan, results: Results, folder: Path) -> list[Path]:
    """Draws one figure, whose labels name the settings that vary among the runs it reads."""
    reads = plan.reads[figure.name]
    varied = settings({id_: plan.runs[id_] for id_ in reads})
    rows = [{**row, "settings": varied[row["id"]]} for row in results.rows if row["id"] in reads]
    return draw(figure, rows, folder, results.rows)


def report_name(name: str, asked: dict[str, Any]) -> str:
    """Folder of a report: its name, and what was asked for beside, so that no selection replaces the whole."""
    if not asked:
        return name
    words = "-".join(f"{field.split('.')[-1]}={value}" for field, value in asked.items())
    # What a file name cannot hold is left out, and told apart by a digest.
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:6]
    return f"{name}-{re.sub(r'[^a-zA-Z0-9.,=+-]+', '_', words)[:80].strip('_-')}-{digest}"
