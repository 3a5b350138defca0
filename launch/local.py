"""Trains runs on this machine, as many workers at once as pay, each fed one run after the other.

A worker that dies takes down the run it was training, and no other: a fresh one goes on with the next, and the run is
taken up again at the end.
"""

import contextlib
import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from slicedice.launching import Job, LaunchError, Phase
from slicedice.launching.here import GRACE_SECONDS, on_cores, phases
from slicedice.machine import Slot, slots
from slicedice.store import Kind, Launch, Store
from slicedice.store.holder import Holder
from slicedice.store.kinds import MOST_FRUITLESS
from slicedice.work import AGAIN, DISK_FULL


class Worker:
    """A worker process on one slot, and the run it has been given."""

    def __init__(self, slot: Slot, job: Job):
        self.run: str | None = None
        self._unfinished = b""
        with on_cores(slot), _opened(job.store.workers_log) as log:
            self.process = subprocess.Popen(
                _command(job, os.getpid()),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | slot.environment,
                start_new_session=True,  # Ctrl-C reaches the launcher, which asks workers to stop in order
            )

    @property
    def output(self) -> IO[bytes]:
        """Where the worker says that a run has ended."""
        assert self.process.stdout is not None
        return self.process.stdout

    def listen(self) -> list[bytes] | None:
        """The lines that have come since, of which one may be of some library; None once the worker has ended.

        Read as they come, past any buffer: a line left in one would not wake the selector again.
        """
        heard = os.read(self.output.fileno(), 65536)
        if not heard:
            return None
        *lines, self._unfinished = (self._unfinished + heard).split(b"\n")
        return lines

    def ending(self, lines: list[bytes]) -> str | None:
        """How the worker's run has ended, if these lines say so, be it behind something that ended no line."""
        found = (re.search(rf"{self.run} ([a-z_]+)$".encode(), line) for line in lines)
        return next((match[1].decode() for match in found if match), None)

    def give(self, run: str) -> None:
        """Gives the worker its next run."""
        assert self.process.stdin is not None
        self.run = run
        with contextlib.suppress(BrokenPipeError):  # it has just died, which its output will tell
            self.process.stdin.write(f"{run}\n".encode())
            self.process.stdin.flush()

    def end(self) -> int:
        """Lets an idle worker end, and waits for it; returns its status."""
        self.close()
        status = self.process.wait()
        self.output.close()
        return status

    def close(self) -> None:
        """Tells the worker that there are no more runs."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()


@dataclass(frozen=True)
class Local:
    """The launcher of this machine. What to set is the sweep's own: --max_concurrent, and the mesh of a run."""

    def render(self, job: Job) -> Mapping[str, str]:
        """The command of every worker, to which runs are given on its standard input."""
        lines = []
        for slot in slots(job.max_concurrent, job.bytes, job.devices):
            cores = f"taskset --cpu-list {','.join(map(str, sorted(slot.cores)))} " if slot.cores else ""
            variables = "".join(f"{name}={shlex.quote(value)} " for name, value in slot.environment.items())
            lines.append(f"{variables}{cores}{shlex.join(_command(job, '$$'))}".replace("'$$'", "$$"))
        return {"workers.sh": "\n".join([*lines, f"# each is given some of: {' '.join(job.runs)}", ""])}

    def submit(self, job: Job, rendered: Mapping[str, str]) -> Sequence[str]:
        """This process is the engine: its name stands for every unit. `attend` trains them."""
        return [Holder.here().handle] * len(job.units)

    def poll(self, launch: Launch) -> Sequence[Phase]:
        """Everything waits that has not ended as long as the sweep lives, and as can be seen from this machine."""
        return phases(launch)

    def cancel(self, launch: Launch, units: Sequence[int]) -> None:
        """Workers look themselves whether a run was cancelled."""

    def logs(self, launch: Launch, unit: int) -> str:
        """What all workers of the store wrote that is no run's; the end of it."""
        log = Store(launch.folder.parents[1]).workers_log
        return "".join(log.read_text(errors="replace").splitlines(keepends=True)[-50:]) if log.exists() else ""

    def attend(self, job: Job) -> None:
        """Trains the job's runs on this machine and returns when all have ended, one way or another.

        Raises:
          LaunchError: the disk is full, or workers cannot be started.
          KeyboardInterrupt: after the workers have saved what they were training.
        """
        queue, workers, tries = deque(job.runs), set(), Counter()
        with selectors.DefaultSelector() as selector:

            def start(slot: Slot) -> None:
                worker = Worker(slot, job)
                workers.add(worker)
                selector.register(worker.output, selectors.EVENT_READ, (worker, slot))
                worker.give(queue.popleft())

            def retire(worker: Worker) -> int:
                selector.unregister(worker.output)
                workers.remove(worker)
                return worker.end()

            try:
                for slot in slots(job.max_concurrent, job.bytes, job.devices):
                    if queue:
                        start(slot)
                while workers:
                    for key, _ in selector.select(timeout=0.5):
                        worker, slot = key.data
                        lines = worker.listen()
                        ending = None if lines is None else worker.ending(lines)
                        if (lines is None and _mourn(job, worker, retire(worker))) or ending == Kind.PREEMPTED:
                            tries[worker.run] += 1
                            if tries[worker.run] < MOST_FRUITLESS:  # also of those that die before they begin
                                queue.append(worker.run)
                        if lines is None and queue:
                            start(slot)
                        elif ending and queue:
                            worker.give(queue.popleft())
                        elif ending:
                            retire(worker)
                    job.watch()
            except BaseException:
                _stop(workers)
                raise


def get_launcher() -> Local:
    """What `--launcher local` is, and what is used without one."""
    return Local()


def _opened(log: Path) -> IO[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    return log.open("ab")


def _command(job: Job, parent: int | str) -> list[str]:
    return [sys.executable, "-m", "slicedice.work", "--store", job.store.address, "--parent", str(parent)]


def _mourn(job: Job, worker: Worker, status: int) -> bool:
    """Settles what a dead worker leaves behind; returns whether its run is to be trained on.

    Raises:
      LaunchError: the others will fare no better.
    """
    assert worker.run is not None
    if status == DISK_FULL:
        raise LaunchError(
            f"The disk of {job.store.root} is full. Finished runs are safe; make room and run the same command again."
        )
    folder = job.store.run(worker.run)
    made = folder.attempts()
    holder = made[0].holder if made else None
    # Another machine, or container, has processes of the same numbers.
    own = holder is not None and (holder.machine, holder.pid) == (Holder.here().machine, worker.process.pid)
    mine = made[0] if own else None
    if mine is None and status > 0:
        # It did not come as far as training: so it would be with every other run.
        raise LaunchError(
            f"A worker ended with status {status} before it began to train. The end of "
            f"{job.store.workers_log} says why."
        )
    if mine and status == AGAIN:
        mine.end_for_it(Kind.PREEMPTED, "its worker could not go on, and asked to be started again")
    elif mine and -status in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        mine.end_for_it(Kind.PREEMPTED, f"its worker was killed by {signal.Signals(-status).name}")
    elif mine:  # a signal of its own making, such as SIGSEGV, would come again
        log = job.store.workers_log
        mine.end_for_it(Kind.CRASHED, f"its worker ended with status {status}; see {log}")
        job.store.note_ending(worker.run)
    return folder.state().kind in (Kind.MISSING, Kind.PREEMPTED)


def _stop(workers: set[Worker]) -> None:
    """Asks workers to save and end, and kills those that do not in time."""
    for worker in workers:
        worker.process.send_signal(signal.SIGTERM)
        worker.close()
    deadline = time.monotonic() + GRACE_SECONDS
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            worker.process.kill()
        worker.end()
