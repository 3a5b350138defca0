"""Trains runs on this machine, as many workers at once as pay, each fed one run after the other.

Where runs of a program are trained at once, a worker is fed several together. A worker that dies takes down what it was
training, and no other run: a fresh one goes on with the next, and what was taken down is taken up again at the end.
"""

import contextlib
import math
import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from slicedice.faults import AGAIN, DISK_FULL
from slicedice.launching import Job, LaunchError, Phase
from slicedice.launching.here import GRACE_SECONDS, on_cores, phases
from slicedice.machine import Slot, has_accelerator, slots
from slicedice.spec import program_key
from slicedice.store import Attempt, Kind, Launch, RunFolder, Store
from slicedice.store.holder import Holder
from slicedice.store.kinds import MOST_FRUITLESS

RUN_SECONDS = 5.0
"""How much longer a worker is given to end for each further run that it has: it saves one after the other."""


class Part(NamedTuple):
    """Runs that a worker is given at a time, of one program."""

    program: str
    runs: Sequence[str]


class Queue:
    """What is left to train, in an order in which each program is compiled once: by the worker that began with it."""

    def __init__(self, parts: Sequence[Part]):
        self._parts, self._begun = list(parts), set[str]()

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, part: Part) -> None:
        """Adds what has to be trained on, as the last."""
        self._parts.append(part)

    def next(self, program: str) -> Part:
        """Takes out what a worker had best train that has compiled `program`: of the same, or else a new one."""
        own = (part for part in self._parts if part.program == program)
        new = (part for part in self._parts if part.program not in self._begun)
        part = next(own, None) or next(new, self._parts[0])
        self._parts.remove(part)
        self._begun.add(part.program)
        return part

    def after(self, part: Part) -> Part | None:
        """What a worker that trains `part` would train of another program after it, as things stand."""
        others = [other for other in self._parts if other.program != part.program]
        return next((other for other in others if other.program not in self._begun), next(iter(others), None))


class Worker:
    """A worker process on one slot.

    part: what it was given last. runs: those of it that have not ended. told: those that were preempted since it was
      told to stop, by which none of them is at fault.
    """

    def __init__(self, slot: Slot, job: Job):
        self.part, self.runs, self.told = Part("", ()), list[str](), list[str]()
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

    def note(self, lines: list[bytes]) -> None:
        """Notes which runs have ended by these lines, be it behind something that ended no line."""
        ended = {}
        for line in lines:
            for run in self.runs:
                if match := re.search(rf"{run} ([a-z_]+)$".encode(), line):
                    ended[run] = match[1].decode()
        self.runs = [run for run in self.runs if run not in ended]
        self.told += [run for run, kind in ended.items() if kind == Kind.PREEMPTED]

    def give(self, queue: Queue, program: str) -> None:
        """Gives the worker what it is to train next, `program` being what it has compiled.

        On accelerators it is told what may come after that, to compile it meanwhile; another worker may take that.
        """
        assert self.process.stdin is not None
        part = queue.next(program)
        then = queue.after(part) if has_accelerator() else None
        self.part, self.runs, self.told = part, list(part.runs), []
        words = [*part.runs, "/", *then.runs] if then else part.runs
        with contextlib.suppress(BrokenPipeError):  # it has just died, which its output will tell
            self.process.stdin.write(f"{' '.join(words)}\n".encode())
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
        places = slots(job.max_concurrent, job.bytes, job.devices)
        queue, workers, tries = Queue(_parts(job, len(places))), set(), Counter()
        with selectors.DefaultSelector() as selector:

            def start(slot: Slot) -> None:
                worker = Worker(slot, job)
                workers.add(worker)
                selector.register(worker.output, selectors.EVENT_READ, (worker, slot))
                worker.give(queue, "")

            def retire(worker: Worker) -> int:
                selector.unregister(worker.output)
                workers.remove(worker)
                return worker.end()

            try:
                for slot in places:
                    if queue:
                        start(slot)
                while workers:
                    for key, _ in selector.select(timeout=0.5):
                        worker, slot = key.data
                        lines = worker.listen()
                        unbegun, again = [], []
                        if lines is None:
                            unbegun, again = _mourn(job, worker, retire(worker))
                        else:
                            worker.note(lines)
                        if not worker.runs or lines is None:
                            again.append(worker.told)
                        for runs in again:
                            tries.update(runs)  # also of those that die before they begin
                        for runs in (unbegun, *again):
                            if left := [run for run in runs if tries[run] < MOST_FRUITLESS]:
                                queue.add(Part(worker.part.program, left))
                        if lines is None and queue:
                            start(slot)
                        elif lines is not None and not worker.runs and queue:
                            worker.give(queue, worker.part.program)
                        elif lines is not None and not worker.runs:
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


def _parts(job: Job, workers: int) -> list[Part]:
    """All runs: one by one, or where they are trained at once, those of a program together.

    A program is split only where some workers would have none: there, into a share for each that it has.
    """
    of_program: dict[str, list[str]] = {}
    lanes: dict[str, int] = {}
    for run in job.runs:
        execution = job.store.run(run).execution()
        program = program_key(job.store.read_spec(run), execution)
        of_program.setdefault(program, []).append(run)
        lanes[program] = execution.lanes
    parts = []
    shares = max(1, workers // max(1, len(of_program)))
    for program, runs in of_program.items():
        size = lanes[program] or (math.ceil(len(runs) / shares) if has_accelerator() else 1)
        parts += [Part(program, runs[i : i + size]) for i in range(0, len(runs), size)]
    return parts


def _mourn(job: Job, worker: Worker, status: int) -> tuple[list[str], list[list[str]]]:
    """Settles what a dead worker leaves behind.

    Returns:
      Of its runs that are to be trained on, those that it had not begun, which are at no fault and stay together; and
      those that it was training, one by one, since one of them may have killed it. If it died before any began, all are
      of the latter.

    Raises:
      LaunchError: the others will fare no better.
    """
    if status == DISK_FULL:
        raise LaunchError(
            f"The disk of {job.store.root} is full. Finished runs are safe; make room and run the same command again."
        )
    mine = {run: attempt for run in worker.runs if (attempt := _attempt_of(job.store.run(run), worker))}
    if worker.runs and not mine and status > 0:
        # It did not come as far as training: so it would be with every other run.
        raise LaunchError(
            f"A worker ended with status {status} before it began to train. The end of "
            f"{job.store.workers_log} says why."
        )
    suspects = [attempt for attempt in mine.values() if not attempt.ending()]
    for attempt in suspects:
        log = job.store.workers_log
        if status == AGAIN:
            attempt.end_for_it(Kind.PREEMPTED, "its worker could not go on, and asked to be started again")
        elif -status in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            attempt.end_for_it(Kind.PREEMPTED, f"its worker was killed by {signal.Signals(-status).name}")
        elif len(suspects) > 1:  # only one that is alone is known to be at fault
            reason = f"its worker ended with status {status} while it trained {len(suspects)} runs; see {log}"
            attempt.end_for_it(Kind.PREEMPTED, reason)
        else:  # a signal of its own making, such as SIGSEGV, would come again
            attempt.end_for_it(Kind.CRASHED, f"its worker ended with status {status}; see {log}")
            job.store.note_ending(attempt.run.name)
    left = [run for run in worker.runs if job.store.run(run).state().kind in (Kind.MISSING, Kind.PREEMPTED)]
    unbegun = [run for run in left if run not in mine] if mine else []
    return unbegun, [[run] for run in left if run not in unbegun]


def _attempt_of(folder: RunFolder, worker: Worker) -> Attempt | None:
    """The attempt that a worker made at a run, if it came to that."""
    made = folder.attempts()
    holder = made[0].holder if made else None
    # Another machine, or container, has processes of the same numbers.
    own = holder is not None and (holder.machine, holder.pid) == (Holder.here().machine, worker.process.pid)
    return made[0] if own else None


def _stop(workers: set[Worker]) -> None:
    """Asks workers to save and end, and kills those that do not in time, of which they get more with more runs."""
    for worker in workers:
        worker.process.send_signal(signal.SIGTERM)
        worker.close()
    began = time.monotonic()
    for worker in workers:
        grace = GRACE_SECONDS + RUN_SECONDS * max(0, len(worker.runs) - 1)
        try:
            worker.process.wait(max(0.0, began + grace - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            worker.process.kill()
        worker.end()
