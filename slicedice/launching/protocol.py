"""The protocol between a sweep and a launcher.

A launcher is a file in `launch/` with a function `get_launcher()`, which returns a frozen dataclass. Its fields are
settings (`--launcher.FIELD=VALUE` replaces one), its methods are those of `Launcher`. It hands work units to an engine,
whose queue is the queue: it places, retries and preempts them. Each is the command `Job.command`, started on every
process of the unit; the runs' folders say how each run ended, so a launcher has no results to bring back.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, runtime_checkable

from slicedice.cost.topology import Topology
from slicedice.store import Launch, Store


class LaunchError(RuntimeError):
    """Launching could not go on; the message is for the user."""


class LeftoverError(LaunchError):
    """An engine refused a job, and some of it that it took before could not be taken back."""


class Phase(StrEnum):
    """Where a work unit is, by what its engine says."""

    QUEUED = "queued"
    RUNNING = "running"
    ENDED = "ended"
    """One way or another, or the engine knows nothing of it any more."""


@dataclass(frozen=True)
class WorkUnit:
    """What one process, or one cluster job of several, trains: runs one after the other, those of a program together.

    runs: ids, in order.
    devices: how many each of them trains on.
    seconds: that they take by the plan; None if nobody knows.
    """

    runs: tuple[str, ...]
    devices: int = 1
    seconds: float | None = None


@dataclass(frozen=True)
class Job:
    """What a launcher is to hand over.

    name: of the launch; lower-case letters, digits and hyphens, 40 at most, the first one a letter; no two are alike.
    store: where the runs' folders are, which exist.
    units: in the order to train them.
    max_concurrent: how many units at once; 0 leaves it to the launcher.
    bytes: memory that the largest run of the plan takes of a device, by estimate.
    devices: how many the run of the plan that takes the most of them trains on.
    topology: what the runs were planned for, if that was said.
    watch: draws progress; cheap, and made to be called twice a second.
    """

    name: str
    store: Store
    units: tuple[WorkUnit, ...]
    max_concurrent: int = 0
    bytes: int = 0
    devices: int = 1
    topology: Topology | None = None
    watch: Callable[[], None] = lambda: None

    @property
    def runs(self) -> tuple[str, ...]:
        """Ids of all runs, in order."""
        return tuple(run for unit in self.units for run in unit.runs)

    def command(self, unit: int | str, *, processes: int = 1, python: str = "python") -> str:
        """The shell command that trains a work unit.

        Args:
          unit: its number, or a shell word such as `$SLURM_ARRAY_TASK_ID`, which is not quoted.
          processes: 1, or 0 where several are started, which JAX finds out about.
          python: the interpreter, a shell word as well.
        """
        several = " --processes 0" if processes != 1 else ""
        store = shlex.quote(self.store.address)
        return f"{python} -m slicedice.work --store {store}{several} --unit {self.name}/{unit}"


@runtime_checkable
class Launcher(Protocol):
    """What a launcher does. None of it looks at devices, or imports JAX."""

    def render(self, job: Job) -> Mapping[str, str]:
        """What would be submitted, word for word: the texts of files, by name. `--dry_run` prints them.

        Raises:
          SpecError, LaunchError: the engine could not take the job.
        """
        ...

    def submit(self, job: Job, rendered: Mapping[str, str]) -> Sequence[str]:
        """Hands over what `render` made, which lies in the launch's folder by now; returns at once.

        Returns:
          The engine's name for each work unit, in order. They are kept in the store for the methods below.

        Raises:
          LaunchError: the engine refused, and has nothing of the job. Whatever else ends it, what was handed over is
            taken back first.
          LeftoverError: the engine refused, and still has some of it.
        """
        ...

    def poll(self, launch: Launch) -> Sequence[Phase]:
        """Asks the engine where each work unit is.

        Raises:
          LaunchError: the engine cannot be asked.
        """
        ...

    def cancel(self, launch: Launch, units: Sequence[int]) -> None:
        """Takes work units, by number, out of the queue, and has those that run save a checkpoint and end.

        A store may be someone else's, and its record of a launch name other people's jobs: only what the engine itself
        says to be of the launch is touched. A unit that has ended, or that the engine does not know, is no error.

        Raises:
          LaunchError: the engine cannot be asked, or refused.
        """
        ...

    def logs(self, launch: Launch, unit: int) -> str:
        """What the engine has of a unit's output, beside its runs' own logs; "" if it has nothing."""
        ...


@runtime_checkable
class Attended(Launcher, Protocol):
    """A launcher whose engine is the process that calls it: a sweep waits for it, and its queue ends with it."""

    def attend(self, job: Job) -> None:
        """Trains the job's runs and returns when all have ended, one way or another; calls `job.watch` meanwhile.

        Raises:
          LaunchError: it could not go on.
          KeyboardInterrupt: after the workers have saved what they were training.
        """
        ...
