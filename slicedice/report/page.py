"""One HTML page that holds a report whole: figures, table, data. It opens offline and asks no one for anything."""

import itertools
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from slicedice.grid import Plan
from slicedice.report.captions import verdict
from slicedice.report.claims import COMPARABLE, Judgement
from slicedice.report.reference import BUDGETS, Comparison, caption, compare
from slicedice.report.results import Results, Row
from slicedice.report.statistics import cells, dense_beside
from slicedice.spec import program_key
from slicedice.store.files import write_whole

SHRUNK = 0.75
"""Of its width a figure may be shrunk to and still be read."""


def write_page(
    path: Path,
    *,
    title: str,
    about: str,
    plan: Plan,
    results: Results,
    figures: list[Path],
    evaluation_sets: dict[str, list[Path]],
    claims: list[Judgement],
) -> None:
    """Writes the page.

    Args:
      path: of the page.
      title: of the page.
      about: what the grid asks, from its file's docstring.
      plan: the grid's runs.
      results: rows and notes.
      figures: SVG files, which are put into the page.
      evaluation_sets: others by the name of the evaluation set that they are of.
      claims: what the results say of the study's claims; those that no run tells of are left out.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("slicedice.report", ""), autoescape=True, undefined=jinja2.StrictUndefined
    )
    measured, found, compared = cells(results.rows, "loss"), domains(results.rows), compare(results.rows)
    numbers = itertools.count()  # of figures, so that no two have an id in common
    page = environment.get_template("page.html.j2").render(
        title=title,
        about=[part.replace("\n", " ") for part in about.strip().split("\n\n")],
        notes=results.notes,
        figures=[_element(path, next(numbers)) for path in figures],
        evaluation_sets={name: [_element(p, next(numbers)) for p in paths] for name, paths in evaluation_sets.items()},
        facts=_facts(plan, results.rows),
        cells=[{"cell": cell, "verdict": verdict(cell, dense_beside(cell, measured))} for cell in measured],
        domains=found,
        settings=any(row["settings"] for row in results.rows),
        # By domain, the mean of each cell.
        apart={d: {c.row["cell"]: c.mean for c in cells(results.rows, f"loss_{d}")} for d in found},
        without_capacity={
            c.row["cell"]: c.mean for c in cells(results.rows, "without_capacity_loss") if c.row["router"] == "default"
        },
        references=_references(compared),
        reference_caption=caption(plan),
        budgets=BUDGETS if any(not line.same for line in compared) else "",
        claims=[judgement for judgement in claims if judgement.findings],
        comparable=COMPARABLE,
        runs=results.rows,
        counts=_counts(results.rows),
    )
    write_whole(path, page)


def _element(path: Path, number: int) -> Markup:
    """The figure as an element of the page: without its document type, and with ids that are its own.

    It scrolls where the window is too narrow to shrink it to and still read it.
    """
    svg = path.read_text(encoding="utf-8")
    svg = svg[svg.index("<svg") :]
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", svg)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>f{number}-", svg)
    width = re.search(r'<svg[^>]* width="([\d.]+)pt"', svg)
    least = f' style="--least: {float(width[1]) * SHRUNK:.0f}pt"' if width else ""
    return Markup(f"<figure{least}>{svg}</figure>")


def _references(compared: list[Comparison]) -> list[dict[str, Any]]:
    """Tables of what is like with like, and of what is not: a heading, columns and lines, if there are any."""
    tables = []
    for heading, same in (("The same setting", True), ("The same layer and router, another budget", False)):
        lines = [line.as_text() for line in compared if line.same is same]
        columns = [name for name in lines[0] if any(line[name] for line in lines)] if lines else []
        tables += [{"heading": heading, "columns": columns, "lines": lines}] if lines else []
    return tables


def domains(rows: list[Row]) -> list[str]:
    """The evaluation sets that losses are known of."""
    names = {name for row in rows for name in row if name.startswith("loss_")}
    return sorted(name.removeprefix("loss_") for name in names)


def _facts(plan: Plan, rows: list[Row]) -> dict[str, str]:
    """What all runs share, for a reader who has only this page."""
    specs = [spec for spec, _ in plan.runs.values()]
    facts = {
        "text": [f"{s.data.source}, tokenizer {s.data.tokenizer}" for s in specs],
        "text's fingerprint": [row["data_fingerprint"] for row in rows if row.get("data_fingerprint")],
        "model": [
            f"width {s.model.d_model}, {s.model.layers} layers of {s.model.heads} heads, d_ff {s.model.d_ff}, "
            f"vocabulary {s.model.vocab_size:,}, {s.compute_dtype}"
            for s in specs
        ],
        "training": [
            f"{s.tokens:,} tokens in {s.budget.steps:,} steps of {s.budget.batch_size} x {s.data.sequence_length}, "
            f"learning rate {s.optimizer.learning_rate:g}"
            for s in specs
        ],
        "seeds": [", ".join(map(str, sorted({s.seed for s in specs})))],
        "asked for": [f"{name} = {value}" for name, value in plan.asked.items()],
        "trained on": [row["device"] for row in rows if row.get("device")],
        "programs": _programs(plan, rows),
        "slicedice's revision": [row["git_revision"] for row in rows if row.get("git_revision")],
    }
    return {name: "; ".join(dict.fromkeys(values)) for name, values in facts.items() if values}


def _programs(plan: Plan, rows: list[Row]) -> list[str]:
    """How many there are, how often their steps were compiled, and what that took."""
    measured = [row for row in rows if row.get("steps_compiled") is not None]
    if not measured:
        return []
    programs = len({program_key(*run) for run in plan.runs.values()})
    compiled, found, seconds = (
        sum(row.get(name) or 0 for row in measured)
        for name in ("steps_compiled", "steps_from_cache", "compile_seconds")
    )
    lanes = max(row.get("lanes") or 1 for row in measured)
    return [
        f"{programs}, whose steps were compiled {compiled:.0f} times and found in the cache {found:.0f} times; "
        f"{seconds:,.0f} s of compiling in all" + (f"; up to {lanes:.0f} runs trained at once" if lanes > 1 else "")
    ]


def _counts(rows: list[Row]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["state"]] = counts.get(row["state"], 0) + 1
    return counts
