"""The protocol between a sweep and a launcher, and how a sweep uses it.

A launcher is a file in `launch/` with a function `launch(job)`. It hands the job's runs to an engine, each
to a process `python -m slicedice.work --store STORE RUN`, calls `job.watch()` now and then while they train,
and returns when nothing of the job is left to wait for. The runs' folders say how each ended.
"""

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console

from slicedice import files
from slicedice.data import prepare
from slicedice.grid import Plan
from slicedice.report.progress import Progress
from slicedice.store import Kind, Store


class LaunchError(RuntimeError):
    """Launching could not go on; the message is for the user."""


@dataclass(frozen=True)
class Job:
    """What a launcher is to do.

    store: where the runs' folders are.
    runs: ids in the order to train them; their folders exist.
    max_concurrent: how many to train at once; 0 leaves it to the launcher.
    watch: draws progress; cheap, and made to be called twice a second.
    """

    store: Store
    runs: tuple[str, ...]
    max_concurrent: int
    watch: Callable[[], None]


def to_train(plan: Plan, store: Store | None, *, retry: bool) -> list[str]:
    """Ids of the runs to launch: what is missing or was interrupted, or with `retry` what failed instead."""
    if store is None:
        return [] if retry else list(plan.runs)
    kinds = {id_: store.run(id_).state().kind for id_ in plan.runs}
    if retry:
        return [id_ for id_, kind in kinds.items() if kind.needs_retry]
    return [id_ for id_, kind in kinds.items() if kind in (Kind.MISSING, Kind.PREEMPTED)]


def train_missing(
    plan: Plan, store: Store, launcher: str, max_concurrent: int, *, retry: bool, console: Console
) -> None:
    """Trains what `to_train` names, showing progress until the launcher returns.

    Raises:
      DataError: the text cannot be used; nothing was launched.
      LaunchError: the launcher could not go on.
    """
    missing = to_train(plan, store, retry=retry)
    if not missing:
        return
    # Text is tokenised before workers start, so that bad input ends here, in one paragraph.
    for source in {plan.runs[id_][0].data for id_ in missing}:
        prepare(source.source, source.tokenizer, store.data, source.heldout_fraction)
    for id_ in missing:
        store.run(id_).create(*plan.runs[id_])
    launch = files.function("launch", launcher, "launch")
    with Progress(store, {id_: plan.runs[id_][0] for id_ in missing}, console) as progress:
        launch(Job(store, tuple(missing), max_concurrent, progress.watch))
