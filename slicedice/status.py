"""The verb `status` of the sweep door: what has become of every run, once or again and again."""

import argparse
import datetime
import json
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live

from slicedice.grid import Plan
from slicedice.launching.queue import queue
from slicedice.report.results import TRAIN, Row, read_results
from slicedice.report.tables import count_table, listed, show, status_table
from slicedice.spec.errors import require
from slicedice.store import Attempt, Kind, Store, metrics
from slicedice.store.files import each

PAUSE_SECONDS = 2.0
"""Between two looks at the store."""


def status(plan: Plan, store: Store, options: argparse.Namespace, console: Console) -> int:
    """Prints the state of every run; with --watch until none trains or waits any more. Returns 0."""
    require(not (options.watch and options.json), "--watch", True, "it draws tables: leave out --json")
    if options.json:
        rows, notes = _read(plan, store, options)
        print(json.dumps({"runs": rows, "notes": notes}))
    elif options.watch and console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            while _goes_on((read := _read(plan, store, options))[0]):
                live.update(Group(*_drawn(*read)), refresh=True)
                time.sleep(PAUSE_SECONDS)
            live.update(Group(*_drawn(*read)), refresh=True)
    else:
        said = ""
        while (line := _line((read := _read(plan, store, options))[0])) and options.watch and _goes_on(read[0]):
            if line != said:  # a file or a pipe is not for tables that change
                console.print(line, soft_wrap=True, highlight=False)
                said = line
            time.sleep(PAUSE_SECONDS)
        for part in _drawn(*read):
            console.print(part, soft_wrap=True) if isinstance(part, str) else show(part, console)
    return 0


def _read(plan: Plan, store: Store, options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Rows of all runs, those that train with how far they are; and notes."""
    results = read_results(plan, store)
    rows = [*results.rows, *results.on_other_text]
    # What is cancelled its unit passes over, though that may be in a queue.
    queued = queue(
        store, [row["id"] for row in rows if row["state"] in (Kind.MISSING, Kind.PREEMPTED)], options.launcher
    )
    open_ = [row["id"] for row in rows if not Kind(row["state"]).has_result]
    failures = dict(zip(open_, each(lambda id_: store.run(id_).failures(), open_, store.root), strict=True))
    active = [row["id"] for row in rows if row["state"] == Kind.RUNNING]
    live = each(lambda id_: _live(store.run(id_).attempts(), plan.runs[id_][0].budget.steps), active, store.root)
    progress = dict(zip(active, live, strict=True))
    for row in rows:
        spec, _ = plan.runs[row["id"]]
        row["last_step"] = spec.budget.steps
        row["failures"] = failures.get(row["id"], {})
        if row["id"] in queued.places and row["state"] in (Kind.MISSING, Kind.PREEMPTED):
            place = queued.places[row["id"]][-1]
            row |= {"state": str(Kind.QUEUED), "launch": place.launch.name, "unit": place.unit}
        row |= progress.get(row["id"], {})
    return rows, [*results.notes, *queued.notes]


def _live(attempts: list[Attempt], last: int) -> dict[str, Any]:
    """How far and how fast a run is that trains now, when it ends at that rate, and how its experts fare."""
    if not attempts:
        return {}
    now, record = attempts[0].signs, metrics.last(attempts[0].metrics) or {}
    left = None if now.seconds_per_step is None else now.seconds_per_step * (last - (now.step or 0))
    try:
        ends = None if left is None else datetime.datetime.fromtimestamp(now.at + left).astimezone()
    except (OverflowError, ValueError, OSError):  # what a store says need not make sense
        ends = None
    holder = attempts[0].holder
    return {
        "host": holder.host if holder else None,
        "seconds_per_step": now.seconds_per_step,
        "ends": None if ends is None else ends.isoformat(timespec="seconds"),
        **{column: record.get(metric) for column, metric in TRAIN.items()},
    }


def _goes_on(rows: list[Row]) -> bool:
    return any(row["state"] in (Kind.RUNNING, Kind.QUEUED) for row in rows)


def _line(rows: list[Row]) -> str:
    counts = {kind: sum(row["state"] == kind for row in rows) for kind in Kind}
    return f"{len(rows)} runs: " + ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)


def _drawn(rows: list[Row], notes: list[str]) -> list[Any]:
    """Tables and lines to print."""
    some = listed(rows)
    parts: list[Any] = [count_table(rows)]
    if some:
        parts.append(status_table(some))
    if len(some) < len(rows):
        parts.append(f"{len(rows) - len(some)} more runs are listed by --only PATTERN or --json.")
    ends = [row["ends"] for row in rows if row.get("ends")]
    if ends:
        parts.append(f"The last of those that train now ends about {max(ends)}.")
    return parts + notes
