"""Who is at work on a store under torture: sweeps, workers that an engine started, and their own workers."""

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from slicedice import machine
from slicedice.faults import AGAIN, DISK_FULL
from slicedice.store import Store
from tests.end_to_end.machines import Command, Machine, Process, cmdline, said, stacks, stat, workers
from tests.end_to_end.watching import Broken

GRID = '''"""Three layers that share nothing."""
from slicedice.grid import Grid, axis

def get_grid(scale):
    return Grid(axis("model.experts", ["dense", "n=4 g=1/2", "n=8 g=1/2"]))
'''

RUNS = 3
"""Of a seed."""

STEPS = 1500
"""Of a run."""

SETTINGS = [
    f"--config.budget.tokens={STEPS * 8 * 32}",
    "--config.execution.evaluate_every=100",
]

ENDS = (
    "are trained by the same command",
    "are trained again by the verb retry",
    "The disk is full",
    "is full. Finished runs are safe",
    "another sweep began at the same moment",
)
"""What a sweep may say, one of these, when it ends without all runs."""

WORKERS = 2
"""Of a sweep. How many cores a worker has may not change, since results depend on it in their last bits."""


class Crew:
    """The processes on a store. `seeds` says how many runs those have who are started from now on.

    Args:
      folder: to work in. store: where.
      rng: decides what somebody would who has the choice. say: puts on record what happens.
    """

    def __init__(self, folder: Path, store: Path, rng: random.Random, say: Callable[[str], None]):
        self.folder, self.store, self.seeds = folder, store, 1
        self.machines = [Machine(folder, name) for name in ("here", "there")]
        self.sweeps: list[Command] = []
        self.units: list[Command] = []
        self.frozen: dict[int, tuple[Process, float]] = {}
        self._rng, self._say = rng, say
        (folder / "three.py").write_text(GRID)

    def start(
        self, machine: Machine, verb: str = "run", *, store: Path | None = None, checkpoint_seconds: float = 0.2
    ) -> Command:
        """Starts a sweep; on the crew's own store unless told otherwise."""
        settings = [*SETTINGS, f"--config.execution.checkpoint_seconds={checkpoint_seconds}"]
        grid = ["--grid", "./three.py", "--scale", "smoke", "--seeds", str(self.seeds), *settings]
        options = ["--yes"] if verb == "gc" else [*grid, "--max_concurrent", str(WORKERS)]
        words = ["-m", "slicedice.sweep", verb, *options, "--store", str(store or self.store)]
        sweep = Command(words, machine, self.folder)
        self._say(f"   {verb} of {self.seeds} seeds begins on {machine.name}: {sweep.process.pid}")
        self.sweeps.append(sweep)
        return sweep

    def start_unit(self, machine_: Machine) -> Command | None:
        """Starts a worker as an engine does, for some work unit; None if nothing was launched yet, or there is one."""
        launches = Store(self.store).launches()
        if not launches or self.units:
            return None
        launch = self._rng.choice(launches[-3:])
        unit = f"{launch.name}/{self._rng.randrange(len(launch.units))}"
        words = ["-m", "slicedice.work", "--store", str(self.store), "--unit", unit]
        self.units.append(Command(words, machine_, self.folder, self._rng.choice(machine.slots(WORKERS))))
        return self.units[-1]

    def workers(self) -> list[Process]:
        """All workers of the store."""
        return workers(self.store)

    def parents(self) -> list[Process]:
        """The sweeps, as processes."""
        found = [(sweep.process.pid, stat(sweep.process.pid)) for sweep in self.sweeps]
        return [Process(pid, now[1]) for pid, now in found if now]

    def freeze(self, process: Process, seconds: float) -> bool:
        """Has a process stand still for some time, while all else goes on; returns whether it is there."""
        if not process.send(signal.SIGSTOP):
            return False
        self.frozen[process.pid] = process, time.monotonic() + seconds
        return True

    def thaw(self, *, everybody: bool = False) -> None:
        """Lets those go on whose time has come."""
        for pid, (process, when) in list(self.frozen.items()):
            if everybody or time.monotonic() > when:
                process.send(signal.SIGCONT)
                del self.frozen[pid]

    def bury(self) -> None:
        """Looks at how those ended that did.

        Raises:
          Broken: nothing that was done to it explains how one did.
        """
        for commands, may_be in ((self.sweeps, _ends_of_a_sweep), (self.units, _ends_of_a_unit)):
            for command in [command for command in commands if command.process.poll() is not None]:
                commands.remove(command)
                status, lines = command.process.returncode, command.said().strip().splitlines()
                self._say(f"   {command.process.pid} ended with {status}: {lines[-1] if lines else ''}")
                if not may_be(command):
                    raise Broken(f"{command.words} ended with {status}, and nobody knows why: {command.said()}")

    def leave(self) -> None:
        """Ends sweeps at once, and lets workers leave by themselves."""
        self.thaw(everybody=True)
        for sweep in self.sweeps:
            sweep.send(signal.SIGKILL)
            sweep.process.wait()
        for unit in self.units:
            unit.send(signal.SIGTERM)

    def report(self) -> str:
        """What everybody is at, and what they said last; for whoever wants to know why nothing goes on."""
        ours = [Process(one.process.pid, now[1]) for one in self.units if (now := stat(one.process.pid))]
        everybody = {one.pid: one for one in (*self.parents(), *ours, *self.workers())}
        lines = [f"{pid} {stat(pid)} {cmdline(pid)}" for pid in everybody]
        where = stacks(self.folder)
        for process in everybody.values():
            size = where.stat().st_size
            process.send(signal.SIGUSR2)
            process.send(signal.SIGCONT)  # else who stands still says nothing
            deadline = time.monotonic() + 5
            while where.stat().st_size == size and time.monotonic() < deadline:
                time.sleep(0.2)
            lines += [f"-- {process.pid} is at", where.read_text()[size:]]
        logs = [*sorted(self.folder.glob("*.log")), said(self.folder), Store(self.store).workers_log]
        newest = sorted((path for path in logs if path.exists()), key=lambda path: path.stat().st_mtime)[-6:]
        for path in newest:
            lines += [f"-- {path} ends with", *path.read_text(errors="replace").splitlines()[-20:]]
        return "\n".join(lines)

    def end(self) -> None:
        """Ends all processes at once."""
        self.thaw(everybody=True)
        for command in (*self.sweeps, *self.units):
            command.process.kill()
            command.process.wait()
        for process in self.workers():
            process.send(signal.SIGKILL)


def _ends_of_a_sweep(sweep: Command) -> bool:
    """Whether a sweep may end as this one did."""
    status, said, interrupted = sweep.process.returncode, sweep.said(), signal.SIGINT in sweep.signals
    if interrupted and ", in wrapped\n" not in said:  # Python imported yet, before a door can do anything about it
        return True
    told = not status or any(words in said for words in ENDS)
    return "Traceback" not in said and (told or -status in sweep.signals or (interrupted and status == 130))


def _ends_of_a_unit(unit: Command) -> bool:
    """Whether a worker of an engine may end as this one did; anybody may have sent it a signal."""
    signals = (signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)
    return unit.process.returncode in (0, AGAIN, DISK_FULL, *(-number for number in signals))
