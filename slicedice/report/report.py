"""The whole report of a grid: tables, figures and the page, in one folder of the store."""

from pathlib import Path

from slicedice.grid import Plan
from slicedice.report.figures import draw
from slicedice.report.page import write_page
from slicedice.report.results import Results, read_results, write_tables
from slicedice.store import Store


def write_report(plan: Plan, store: Store, *, name: str, title: str, about: str) -> tuple[Results, Path]:
    """Reads the runs of `plan` and writes their report.

    Args:
      plan: the grid's runs.
      store: where they are.
      name: of the report's folder.
      title: of the page.
      about: what the grid asks.

    Returns:
      The results, and the page.
    """
    results, folder = read_results(plan, store), store.report(name)
    write_tables(results, folder)
    drawn = [draw(figure, results.rows, folder) for figure in plan.grid.figures]
    svgs = [file for files in drawn for file in files if file.suffix == ".svg"]
    page = folder / "index.html"
    write_page(page, title=title, about=about, results=results, figures=svgs)
    return results, page
