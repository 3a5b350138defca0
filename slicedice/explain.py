"""Explains plans: which figures need a run, why two ids differ, what a report lacks. Trains nothing."""

from collections.abc import Iterable

from slicedice.files import FileError
from slicedice.grid import GridError, Plan, departures
from slicedice.report.results import Results, settings
from slicedice.spec import RunSpec, run_id, run_name
from slicedice.spec.identity import SCHEMA, differences
from slicedice.store import Kind, Store

Plans = dict[str, Plan]
"""Plans by the name of their grid."""


def find(wanted: str, plans: Plans, store: Store) -> RunSpec:
    """The spec of a run by id, the beginning of one, or name: of a plan, or else of the store.

    Of several runs of a name it is the one that sets least otherwise than its scale's config.

    Raises:
      GridError: no run or several are called so.
      StoreError: the run is in the store alone, and its spec cannot be read.
    """
    known = {id_: spec for plan in plans.values() for id_, (spec, _) in plan.runs.items()}
    found = {id_: spec for id_, spec in known.items() if id_.startswith(wanted) or run_name(spec) == wanted}
    if not found:
        stored = [id_ for id_ in store.ids() if id_.startswith(wanted)]
        if len(stored) == 1:
            return store.read_spec(stored[0])
        if stored:
            raise GridError(f"{wanted!r} may be any of {len(stored)} runs in the store: {', '.join(stored[:6])}.")
        where = f"of the grid {next(iter(plans))}" if len(plans) == 1 else "of any grid"
        scales = ", ".join(dict.fromkeys(spec.scale for spec in known.values()))
        raise GridError(
            f"{wanted!r} is no run {where} at {scales}, nor in the store. Names and ids are what `plan` lists; other "
            "scales are looked through with --scale."
        )
    named = [(_departs(spec), spec) for spec in found.values() if run_name(spec) == wanted]
    usual = [spec for count, spec in named if count == min(count for count, _ in named)]
    if len(usual) == 1:
        return usual[0]
    if len(found) > 1:
        apart = settings({id_: (spec, None) for id_, spec in found.items()})
        names = ", ".join(f"{id_} ({apart[id_] or run_name(spec)})" for id_, spec in list(found.items())[:6])
        raise GridError(f"{wanted!r} may be any of {len(found)} runs: {names}. Give the id.")
    return next(iter(found.values()))


def _departs(spec: RunSpec) -> int:
    """How many fields, beside what its name tells, a run sets otherwise than its scale's config."""
    try:
        return sum(not name.startswith("router.") for name in departures(spec, spec.scale))
    except FileError:
        return 0


def why(spec: RunSpec, plans: Plans) -> list[dict[str, str]]:
    """The grids that train a run, and their figures that need it; "" for a figure where only the grid does."""
    id_, needs = run_id(spec), []
    for grid, plan in plans.items():
        figures = [name for name, ids in plan.reads.items() if id_ in ids]
        for name in figures or [""] * (id_ in plan.runs):
            title = plan.figures[name].title if name else "no figure: a point or anchor of the grid"
            needs.append({"grid": grid, "figure": name, "title": title})
    return needs


def diff(one: RunSpec, other: RunSpec) -> list[dict[str, str]]:
    """The fields in which two runs differ, each with both values; empty if they are one run."""
    changed = differences(one, other)
    if set(changed) == {"scale"}:
        changed = {}  # a label, which makes no id
    return [{"field": name, "one": _word(a), "other": _word(b)} for name, (a, b) in changed.items()]


def _word(value: object) -> str:
    return "none" if value in (None, "") else str(value)


def said_of(changed: Iterable[dict[str, str]]) -> str:
    """A sentence on what a difference means for a reader of figures."""
    fields = {line["field"] for line in changed}
    if not fields:
        return f"They are one run: the same settings at schema {SCHEMA}."
    if fields == {"seed"}:
        return "They are seeds of one cell."
    others = [name for name in fields - {"seed"} if not name.startswith(("model.layer.", "router."))]
    if others:
        return f"Their training differs in {', '.join(sorted(others))}: claims do not compare them."
    if "seed" in fields:
        return "Their cells are compared over the seeds that both have; these two are of different seeds."
    return "They read the same batches: they are compared with each other."


def missing(plan: Plan, results: Results) -> list[dict[str, str]]:
    """The runs of a plan that figures lack, each with its state, these figures, and why if it is known."""
    lacking = []
    for row in [*results.rows, *results.on_other_text]:
        if not Kind(row["state"]).has_result or row["reason"]:
            figures = ", ".join(name for name, ids in plan.reads.items() if row["id"] in ids)
            line = {"run": row["name"], "id": row["id"], "state": row["state"], "figures": figures}
            lacking.append(line | {"reason": row["reason"] or ""})
    return lacking
