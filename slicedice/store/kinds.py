"""What can become of a run."""

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """The states of a run. DONE and DIVERGED are results; the kinds after them are ways to end without one."""

    MISSING = "missing"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    DIVERGED = "diverged"
    PREEMPTED = "preempted"
    CANCELLED = "cancelled"
    PAUSED = "paused"
    CRASHED = "crashed"
    OUT_OF_MEMORY = "out_of_memory"

    @property
    def has_result(self) -> bool:
        """Whether the run is over and reports may read it."""
        return self in (Kind.DONE, Kind.DIVERGED)

    @property
    def is_open(self) -> bool:
        """Whether a worker that comes by may train it; if somebody else does, that has to be found out."""
        return self in (Kind.MISSING, Kind.RUNNING, Kind.PREEMPTED)

    @property
    def is_settled(self) -> bool:
        """Whether a worker has nothing more to do for it."""
        return self.has_result or self.needs_retry or self is Kind.CANCELLED

    @property
    def is_to_train(self) -> bool:
        """Whether the next sweep takes it up."""
        return self in (Kind.MISSING, Kind.PREEMPTED, Kind.CANCELLED)

    @property
    def needs_retry(self) -> bool:
        """Whether it would fail again as it is, and so runs again only when asked to."""
        return self in (Kind.PAUSED, Kind.CRASHED, Kind.OUT_OF_MEMORY)


FAILURES = Kind.PREEMPTED, Kind.CANCELLED, Kind.CRASHED, Kind.OUT_OF_MEMORY
"""How an attempt may end without a result."""

MOST_FRUITLESS = 5
"""Attempts in a row that may be preempted without a checkpoint, until the run counts as crashed.

Those that were told to stop, or lost the run to another process or the store's bucket, are not counted: that came from
outside, and whoever told them has a bound of its own. What is left are processes that were killed or died without a
word, as where a run takes more memory than its machine has, and those that lost the others of their run.

Of the other kinds none is tried again by itself: a crash would come again, and what is out of memory has been tried
with less of it by then.
"""


@dataclass(frozen=True)
class RunState:
    """A run's kind, the steps it has metrics for, and why it is so if it failed."""

    kind: Kind
    steps: int = 0
    reason: str = ""
