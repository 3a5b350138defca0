"""The protocol between a sweep and a launcher.

A launcher is a file in `launch/` with a function `launch(job)`. It hands the job's runs to an engine, each
to a process `python -m slicedice.work --store STORE RUN`, calls `job.watch()` now and then while they train,
and returns when nothing of the job is left to wait for. The runs' folders say how each ended.
"""

from collections.abc import Callable
from dataclasses import dataclass

from slicedice.store import Store


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
