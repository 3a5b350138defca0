"""A storm over a small sweep: `python -m tests.end_to_end.torture --rounds 200 --seed 7`.

In each round something happens to it (`disturbances.py`) at a moment drawn from the seed; meanwhile, at every moment
there is time to look, what must always hold has to hold (`watching.py`). When no sweep is left, one is started, as by a
user. At the end all runs are done, and to the bit as in a sweep that nothing happened to.
"""

import argparse
import contextlib
import itertools
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from slicedice.store import Attempt, RunFolder
from tests.end_to_end.disturbances import DISTURBANCES, Found
from tests.end_to_end.machines import SILENCE_SECONDS, Machine, Process, SmallDisk, Sweep, stat, workers
from tests.end_to_end.watching import Broken, Watch, phase

GRID = '''"""Three layers that share nothing."""
from slicedice.grid import Grid, axis

def get_grid(scale):
    return Grid(axis("model.experts", ["dense", "n=4 g=1/2", "n=8 g=1/2"]))
'''

STEPS = 1500

SETTINGS = [
    f"--config.budget.tokens={STEPS * 8 * 32}",
    "--config.execution.checkpoint_seconds=0.2",
    "--config.execution.evaluate_every=100",
]

PATIENCE_SECONDS = 25.0
"""To wait for a moment that does not come."""

ENDS = (
    "are trained by the same command",
    "are trained again by the verb retry",
    "The disk is full",
    "is full. Finished runs are safe",
    "another sweep began at the same moment",
    "There is nothing to retry",
)
"""What a sweep may say, one of these, when it ends without all."""


class Storm:
    """A store, the sweeps on it, and what has happened to them so far."""

    def __init__(self, folder: Path, seed: int, disk: SmallDisk | None):
        self.folder, self.disk, self.rng = folder, disk, random.Random(seed)
        self.store = (disk.folder if disk else folder) / "store"
        self.machines = [Machine(folder, name) for name in ("here", "there")]
        self.watch = Watch(self.store / "runs", STEPS)
        self.sweeps: list[Sweep] = []
        self.frozen: dict[int, tuple[Process, float]] = {}
        self.damaged: set[Path] = set()
        self.seeds, self._started = 1, 0
        self.happened: Counter[str] = Counter()
        self.phases: Counter[str] = Counter()
        self.log: list[str] = []
        (folder / "three.py").write_text(GRID)

    def say(self, text: str) -> None:
        """Puts on record what happens."""
        self.log.append(f"{time.strftime('%T')} {text}")
        print(self.log[-1], flush=True)

    # Processes.

    def command(self, verb: str, store: Path) -> list[str]:
        """What a user types."""
        grid = ["--grid", "./three.py", "--scale", "smoke", "--seeds", str(self.seeds), "--max_concurrent", "2"]
        return [verb, *grid, "--store", str(store), *SETTINGS]

    def start(self, machine: Machine, verb: str = "run", store: Path | None = None) -> Sweep:
        """Starts a sweep; on the storm's own store unless told otherwise."""
        self._started += 1
        log = self.folder / f"sweep-{self._started}.log"
        sweep = Sweep(self.command(verb, store or self.store), machine, self.folder, log)
        self.say(
            f"   sweep {self._started}, process {sweep.process.pid}: {verb} of {self.seeds} seeds on {machine.name}"
        )
        if store is None:
            self.sweeps.append(sweep)
        return sweep

    def workers(self) -> list[Process]:
        """All workers of the store."""
        return workers(self.store)

    def parents(self) -> list[Process]:
        """The sweeps, as processes."""
        found = [(sweep.process.pid, stat(sweep.process.pid)) for sweep in self.sweeps]
        return [Process(pid, now[1]) for pid, now in found if now]

    def victim(self, found: Found) -> Process | None:
        """The worker of the moment, or else any."""
        if found:
            return found[1]
        here = self.workers()
        return self.rng.choice(here) if here else None

    def freeze(self, process: Process, seconds: float) -> bool:
        """Has a process stand still for some time, while all else goes on."""
        if not process.send(signal.SIGSTOP):
            return False
        self.frozen[process.pid] = process, time.monotonic() + seconds
        return True

    def _thaw(self, everybody: bool = False) -> None:
        for pid, (process, when) in list(self.frozen.items()):
            if everybody or time.monotonic() > when:
                process.send(signal.SIGCONT)
                del self.frozen[pid]

    def _keep(self) -> None:
        """Sees to it that somebody sweeps."""
        self._bury()
        if self.sweeps:
            return
        kinds = [run.state().kind for run in self.watch.folders()]
        if len(kinds) == 3 * self.seeds and all(kind.has_result for kind in kinds):
            self.seeds += 1
        retries = any(kind.needs_retry for kind in kinds) and self.rng.random() < 0.5
        self.start(self.rng.choice(self.machines), "retry" if retries else "run")

    def _bury(self) -> None:
        """Looks at how sweeps have ended."""
        for sweep in [sweep for sweep in self.sweeps if sweep.process.poll() is not None]:
            self.sweeps.remove(sweep)
            status, said = sweep.process.returncode, sweep.said()
            self.say(f"   sweep {sweep.process.pid} ended with {status}: {said.strip().splitlines()[-1:]}")
            # Ctrl-C that comes while Python imports, before `main` can do anything about it, is Python's to tell.
            early = sweep.killed_by == signal.SIGINT and status == -signal.SIGINT and ", in main\n" not in said
            if "Traceback" in said and not early:
                raise Broken(f"a sweep ended in a traceback:\n{said}")
            expected = sweep.killed_by and status in (-sweep.killed_by, 130)
            if not expected and status and not any(words in said for words in ENDS):
                raise Broken(f"a sweep ended with {status}, and nobody knows why:\n{said}")

    # Time.

    def pass_time(self, seconds: float, until: Callable[[], bool] = lambda: False, *, keep: bool = True) -> bool:
        """Lets time pass; returns whether `until` has come true, which ends it."""
        deadline = time.monotonic() + seconds
        while True:
            self._thaw()
            if keep:
                self._keep()
            self.watch.look()
            if until():
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)

    def await_attempt(self, is_ready: Callable[[Attempt], bool], seconds: float = PATIENCE_SECONDS) -> Found:
        """Waits for an attempt that is made now, and as it is asked for."""
        found: list[Found] = []

        def look() -> bool:
            found[:] = [(attempt, process) for attempt, process in self.watch.live() if is_ready(attempt)]
            return bool(found)

        return self.rng.choice(found) if self.pass_time(seconds, look) else None

    def come_to(self, moment: str) -> Found:
        """Waits for a moment of some attempt's, and then a little, or for any moment."""
        if moment == "any":
            self.pass_time(self.rng.uniform(0, 6))
            return None
        found = self.await_attempt(lambda attempt: phase(attempt) == moment)
        most = {"before steps": 3.0, "training": 2.0, "saving": 0.05}.get(moment, self.rng.choice([0.0, 0.4]))
        self.pass_time(self.rng.uniform(0, most))
        return found

    # Rounds.

    def round(self, number: int, kind: str) -> None:
        """Has something happen."""
        moments = ["any", "before steps", "training", "saving", "at the result", "after the result"]
        for _ in range(10):
            found = self.come_to(self.rng.choice(moments))
            self._keep()
            at = phase(found[0]) if found else "any"
            if text := DISTURBANCES[kind](self, found):
                break
            self.say(f"{number:3d} {kind}, {at}: nobody to do it to")
        else:
            raise Broken(f"there is never anybody for {kind}")
        self.say(f"{number:3d} {kind}, {at}: {text}")
        self.happened[kind] += 1
        self.phases[at] += 1
        self.watch.judge()

    def rage(self, rounds: int) -> None:
        """Has so many things happen, each of them as often."""
        kinds = [kind for kind in DISTURBANCES if self.disk or kind != "full_disk"]
        order = [kinds[i % len(kinds)] for i in range(rounds)]
        self.rng.shuffle(order)
        for number, kind in enumerate(order, 1):
            self.round(number, kind)

    def calm_down(self) -> None:
        """Ends all processes, and then trains what is left, as a user would; all runs are done afterwards."""
        self._thaw(everybody=True)
        for machine in self.machines:
            machine.set_clock(0.0)
        for sweep in self.sweeps:
            sweep.send(signal.SIGKILL)
            sweep.process.wait()
        if not self.pass_time(120, lambda: not self.workers(), keep=False):
            raise Broken(f"workers go on without their sweep: {self.workers()}")
        self._bury()
        self.pass_time(SILENCE_SECONDS, keep=False)
        self.watch.judge()
        while any(run.state().kind.needs_retry for run in self.watch.folders()):
            self._to_end(self.start(self.machines[0], "retry"))
        sweep = self.start(self.machines[0])
        self._to_end(sweep)
        if sweep.process.returncode:
            raise Broken(f"the last sweep ended with {sweep.process.returncode}:\n{sweep.said()}")
        self.watch.judge()

    def _to_end(self, sweep: Sweep) -> None:
        self.pass_time(600, lambda: sweep.process.poll() is not None, keep=False)
        self._bury()

    def compare(self) -> None:
        """Has a sweep that nothing happens to train the same runs, and compares all to the bit."""
        calm = self.folder / "calm"
        sweep = self.start(self.machines[0], store=calm)
        status = sweep.process.wait()
        if status:
            raise Broken(f"the undisturbed sweep ended with {status}:\n{sweep.said()}")
        names = sorted(path.name for path in (calm / "runs").iterdir())
        assert names == [run.path.name for run in self.watch.folders()]
        assert len(names) == 3 * self.seeds
        differences = [
            difference
            for name in names
            for difference in differ(RunFolder(calm / "runs" / name), RunFolder(self.store / "runs" / name))
        ]
        assert not differences, "\n".join(differences)
        self.say(f"{len(names)} runs are as they were, in {sum(self.watch.attempts.values())} attempts")

    def end(self) -> None:
        """Ends all processes at once."""
        self._thaw(everybody=True)
        for sweep in self.sweeps:
            sweep.process.kill()
            sweep.process.wait()
        for process in self.workers():
            process.send(signal.SIGKILL)


def differ(one: RunFolder, other: RunFolder) -> Iterator[str]:
    """In what a run is not to the bit as in an undisturbed sweep, `one`."""
    first, second = one.result() or {}, other.result() or {}
    mine, its = one.attempt(), other.attempt()
    for part in ("kind", "steps", "train", "evaluation"):
        if first.get(part, one) != second.get(part, other):
            yield f"{its.path}: {part} is {second.get(part)}, not {first.get(part)}"
    for path, its_path in ((mine.metrics, its.metrics), (mine.evaluation_lines, its.evaluation_lines)):
        lines, its_lines = path.read_bytes().splitlines(), its_path.read_bytes().splitlines()
        if lines != its_lines:
            where = [i for i, (a, b) in enumerate(itertools.zip_longest(lines, its_lines)) if a != b]
            yield f"{its_path} has {len(its_lines)} lines for {len(lines)}, other ones from {where[0]} to {where[-1]}"
    leaves, others = _model(mine), _model(its)
    wrong = [name for name in {*leaves, *others} if not np.array_equal(leaves.get(name, ()), others.get(name, ()))]
    if wrong:
        yield f"{its.path}: of the model {wrong} are others"


def _model(attempt: Attempt) -> dict[str, np.ndarray]:
    with ocp.StandardCheckpointer() as reader:
        return {name: np.asarray(leaf) for name, leaf in reader.restore(attempt.checkpoints / "model").items()}


def torture(folder: Path, rounds: int, seed: int, *, disk_can_fill: bool = True) -> Storm:
    """A storm from beginning to end.

    Args:
      folder: for all of it. rounds: how often something happens. seed: of what, and when.
      disk_can_fill: whether the store is on a small disk of its own, for which one has to be root.

    Raises:
      AssertionError: something does not hold that has to.
    """
    with contextlib.ExitStack() as stack:
        size = 2**20 * (128 + 2 * rounds)
        disk = stack.enter_context(SmallDisk(folder / "disk", size)) if disk_can_fill else None
        storm = Storm(folder, seed, disk)
        stack.callback(storm.end)
        try:
            storm.rage(rounds)
            storm.calm_down()
            storm.compare()
        except BaseException:
            storm.end()
            if disk:
                shutil.copytree(disk.folder, folder / "left", ignore=shutil.ignore_patterns("filler"))
            raise
        return storm


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.end_to_end.torture", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--keep", type=Path, help="a folder that stays, for whoever looks for a cause")
    options = parser.parse_args()
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        print(f"--rounds {options.rounds} --seed {options.seed}")
        storm = torture(folder, options.rounds, options.seed, disk_can_fill=SmallDisk.can_be(folder / "disk"))
    for counted in (storm.happened, storm.phases):
        print(", ".join(f"{count} {name}" for name, count in sorted(counted.items())))
    print(f"{time.monotonic() - began:.0f} seconds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
