"""The verb `status` of the sweep door: what has become of every run, once or again and again."""

import argparse
import datetime
import json
import math
import time
from collections.abc import Collection, Iterator
from typing import Any

from rich.console import Console, Group
from rich.live import Live

from slicedice.grid import Plan
from slicedice.launching.queue import Queue, queue
from slicedice.report.results import TRAIN, Row, read_results
from slicedice.report.tables import count_table, listed, show, status_table
from slicedice.spec.errors import require
from slicedice.store import Attempt, Kind, Store, metrics
from slicedice.store.files import each

PAUSE_SECONDS = 2.0
"""Between two looks at the store."""


ENGINES_SECONDS = 30.0
"""Between two questions to engines, of which some answer all users of a cluster."""


def status(plan: Plan, store: Store, options: argparse.Namespace, console: Console) -> int:
    """Prints the state of every run; with --watch until none trains or waits any more. Returns 0."""
    require(not (options.watch and options.json), "--watch", True, "it draws tables: leave out --json")
    reads = _reads(plan, store, options)
    if options.json:
        rows, notes = next(reads)
        print(json.dumps({"runs": rows, "notes": notes}))
    elif options.watch and console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            for read in reads:
                live.update(Group(*_drawn(*read)), refresh=True)
    else:
        said, read = "", ([], [])
        for read in reads:
            line = _line(read[0])
            if options.watch and _goes_on(read[0]) and line != said:  # a file or a pipe is not for tables that change
                console.print(line, soft_wrap=True, highlight=False)
                said = line
        for part in _drawn(*read):
            console.print(part, soft_wrap=True) if isinstance(part, str) else show(part, console)
    return 0


class _Engines:
    """What engines have in their queues."""

    def __init__(self, store: Store, launcher: str):
        self._store, self._launcher = store, launcher
        self._found, self._asked = Queue({}, ()), -math.inf

    def ask(self, runs: Collection[str], oldest: float) -> Queue:
        """What they said of the runs; asked again if that is older than so many seconds."""
        if time.monotonic() - self._asked > oldest:
            self._found, self._asked = queue(self._store, runs, self._launcher), time.monotonic()
        return self._found


def _reads(plan: Plan, store: Store, options: argparse.Namespace) -> Iterator[tuple[list[Row], list[str]]]:
    """One look, or with --watch one after the other, until nothing trains or waits."""
    engines = _Engines(store, options.launcher)
    while True:
        read = _read(plan, store, options, engines, ENGINES_SECONDS)
        if options.watch and not _goes_on(read[0]):  # but a run that trained may be in a queue again
            read = _read(plan, store, options, engines, PAUSE_SECONDS)
        yield read
        if not options.watch or not _goes_on(read[0]):
            return
        time.sleep(PAUSE_SECONDS)


def _read(
    plan: Plan, store: Store, options: argparse.Namespace, engines: _Engines, oldest: float
) -> tuple[list[Row], list[str]]:
    """Rows of all runs, those that train with how far they are; and notes."""
    results = read_results(plan, store)
    rows = [*results.rows, *results.on_other_text]
    # What is cancelled its unit passes over, though that may be in a queue.
    queued = engines.ask([row["id"] for row in rows if row["state"] in (Kind.MISSING, Kind.PREEMPTED)], oldest)
    open_ = [row["id"] for row in rows if options.json and not Kind(row["state"]).has_result]  # no table has failures
    failures = dict(zip(open_, each(lambda id_: store.run(id_).failures(), open_, store.root), strict=True))
    active = [row["id"] for row in rows if row["state"] == Kind.RUNNING]
    live = each(lambda id_: _live(store.run(id_).attempts(), plan.runs[id_][0].budget.steps), active, store.root)
    progress = dict(zip(active, live, strict=True))
    for row in rows:
        spec, _ = plan.runs[row["id"]]
        row["last_step"] = spec.budget.steps
        if options.json:
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
