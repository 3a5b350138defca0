"""The whole report of a grid: tables, figures and the page, in one folder of the store."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

from slicedice.grid import Plan
from slicedice.report.claims import Judgement, judge
from slicedice.report.drawing import Task, draw_all
from slicedice.report.page import domains, write_page
from slicedice.report.results import Results, read_results, settings, write_tables
from slicedice.store import Store
from slicedice.store.files import safe_name, write_json

EVALUATION_SETS = "evaluation_sets"
"""Folder in a report's own, of the figures of each evaluation set."""


def write_report(
    plan: Plan, store: Store, *, grid: str, scale: str, about: str, evaluation_sets: bool = False
) -> tuple[Results, list[Judgement], Path]:
    """Reads the runs of `plan` and writes their report.

    Args:
      plan: the grid's runs.
      store: where they are.
      grid: name of the grid.
      scale: name of the scale.
      about: what the grid asks.
      evaluation_sets: whether figures of the held-out loss are drawn for each evaluation set too.

    Returns:
      The results, with notes on figures that are not drawn; what they say of the study's claims; and the page.
    """
    results, folder = read_results(plan, store), store.report(report_name(f"{grid}-{scale}", plan.asked))
    write_tables(results, folder)
    tasks = _tasks(plan, results, folder, domains(results.rows) if evaluation_sets else [])
    results = dataclasses.replace(results, notes=results.notes + _not_drawn(tasks))
    tasks = [task for task in tasks if task.has_values]
    draw_all(tasks, results.rows)
    _remove_stale(folder, plan, tasks)
    page, claims = folder / "index.html", judge(results.rows)
    write_json(folder / "claims.json", [judgement.as_dict() for judgement in claims])
    svgs: dict[str, list[Path]] = {"": []}
    for task in tasks:
        svgs.setdefault(task.evaluation_set, []).append(task.files[1])
    write_page(
        page,
        title=f"{grid} at {scale}",
        about=about,
        plan=plan,
        results=results,
        figures=svgs.pop(""),
        evaluation_sets=svgs,
        claims=claims,
    )
    return results, claims, page


def _tasks(plan: Plan, results: Results, folder: Path, evaluation_sets: list[str]) -> list[Task]:
    """What is to be drawn: each figure, and those of the held-out loss for each evaluation set too."""
    tasks: list[Task] = []
    taken: set[str] = set()  # a figure f of the set x_y would else have the name of f_x of the set y
    for figure in (dataclasses.replace(figure, points=[]) for figure in plan.figures.values()):
        # Labels name the settings that vary among the runs that the figure reads.
        varied = settings({id_: plan.runs[id_] for id_ in plan.reads[figure.name]})
        rows = [{**row, "settings": varied[row["id"]]} for row in results.rows if row["id"] in varied]
        tasks.append(Task(figure, rows, folder))
        for name in evaluation_sets if figure.y == "loss" else []:
            file = f"{figure.name}_{safe_name(name)}"
            file = safe_name(file, f"{figure.name}\0{name}") if file in taken else file
            taken.add(file)
            own = dataclasses.replace(figure, y=f"loss_{name}", name=file)
            tasks.append(Task(own, rows, folder / EVALUATION_SETS, name))
    return tasks


def _not_drawn(tasks: list[Task]) -> list[str]:
    """A sentence for each column that no run has which a figure reads."""
    names: dict[str, list[str]] = {}
    for task in tasks:
        if not task.has_values:
            names.setdefault(task.figure.y, []).append(task.figure.name)
    return [
        f"{', '.join(own)} {'is' if len(own) == 1 else 'are'} not drawn: no run has {column} yet"
        for column, own in names.items()
    ]


def _remove_stale(folder: Path, plan: Plan, drawn: list[Task]) -> None:
    """Removes what earlier reports drew and this one did not, so that no figure is of other results than its page."""
    own = {file for figure in plan.figures.values() for file in Task(figure, [], folder).files}
    own |= {*(folder / EVALUATION_SETS).glob("*.png"), *(folder / EVALUATION_SETS).glob("*.svg")}
    for file in own - {file for task in drawn for file in task.files}:
        file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # there is none, or it still holds something
        (folder / EVALUATION_SETS).rmdir()


def report_name(name: str, asked: dict[str, Any]) -> str:
    """Folder of a report: its name, and what was asked for beside, so that no selection replaces the whole."""
    if not asked:
        return name
    words = "-".join(f"{field.split('.')[-1]}={value}" for field, value in asked.items())
    return f"{name}-{safe_name(words, json.dumps(asked, sort_keys=True))}"
