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
from tests.end_to_end.crew import RUNS, STEPS, Crew
from tests.end_to_end.disturbances import DISTURBANCES, Found
from tests.end_to_end.machines import SILENCE_SECONDS, Command, Process, SmallDisk, said
from tests.end_to_end.watching import Broken, Watch, phase

PATIENCE_SECONDS = 12.0
"""To wait for a moment that does not come."""

ROUND_SECONDS, REST_SECONDS = 40, 900
"""A storm that takes more than this for each of its rounds, and for its end, hangs: some eight times what it takes."""

MOMENTS = (
    "any",
    "any",
    "before steps",
    "before steps",
    "training",
    "training",
    "saving",
    "saving",
    "at the result",
    "after the result",
)
"""At which something happens, each as likely as it is often here."""


class Storm:
    """A store, who is at work on it, and what has happened so far."""

    def __init__(self, folder: Path, seed: int, disk: SmallDisk | None):
        self.folder, self.disk, self.rng = folder, disk, random.Random(seed)
        self.store = (disk.folder if disk else folder) / "store"
        self.crew = Crew(folder, self.store, self.rng, self.say)
        self.watch = Watch(self.store / "runs", STEPS, said(folder))
        self.damaged: set[Path] = set()
        self.happened: Counter[str] = Counter()
        self.phases: Counter[str] = Counter()

    def say(self, text: str) -> None:
        """Puts on record what happens."""
        print(f"{time.strftime('%T')} {text}", flush=True)

    def victim(self, found: Found) -> Process | None:
        """The worker of the moment, or else any."""
        if found:
            return found[1]
        here = self.crew.workers()
        return self.rng.choice(here) if here else None

    def keep(self) -> None:
        """Sees to it that somebody sweeps."""
        self.crew.bury()
        if self.crew.sweeps:
            return
        kinds = [run.state().kind for run in self.watch.folders()]
        if len(kinds) == RUNS * self.crew.seeds and all(kind.has_result for kind in kinds):
            self.crew.seeds += 1
        retries = any(kind.needs_retry for kind in kinds) and self.rng.random() < 0.5
        self.crew.start(self.rng.choice(self.crew.machines), "retry" if retries else "run")

    # Time.

    def pass_time(self, seconds: float, until: Callable[[], bool] = lambda: False, *, keep: bool = True) -> bool:
        """Lets time pass; returns whether `until` has come true, which ends it."""
        deadline = time.monotonic() + seconds
        while True:
            self.crew.thaw()
            if keep:
                self.keep()
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
        for _ in range(10):
            found = self.come_to(self.rng.choice(MOMENTS))
            self.keep()
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
        here = self.crew.machines[0]
        for machine in self.crew.machines:
            machine.set_clock(0.0)
        self.crew.leave()
        if not self.pass_time(120, lambda: not self.crew.workers(), keep=False):
            raise Broken(f"workers do not leave: {self.crew.workers()}")
        self.pass_time(SILENCE_SECONDS, keep=False)
        self.watch.judge()
        if any(run.state().kind.needs_retry for run in self.watch.folders()):
            self._to_end(self.crew.start(here, "retry"))
        sweep = self.crew.start(here)
        self._to_end(sweep)
        if sweep.process.returncode:
            raise Broken(f"the last sweep ended with {sweep.process.returncode}:\n{sweep.said()}")
        self.watch.judge()
        if self.watch.damaged:
            raise Broken(f"nobody met what was damaged: {self.watch.damaged}")
        self._to_end(self.crew.start(here, "gc"))
        self.watch.judge()  # and nothing of a result went

    def _to_end(self, sweep: Command) -> None:
        while not self.pass_time(60, lambda: sweep.process.poll() is not None, keep=False):
            self.say(f"   {sweep.process.pid} goes on")
        self.crew.bury()

    def compare(self) -> None:
        """Has a sweep that nothing happens to train the same runs, and compares all to the bit."""
        calm = self.folder / "calm"
        sweep = self.crew.start(self.crew.machines[0], store=calm)
        self._to_end(sweep)
        if sweep.process.returncode:
            raise Broken(f"the undisturbed sweep ended with {sweep.process.returncode}:\n{sweep.said()}")
        names = sorted(path.name for path in (calm / "runs").iterdir())
        assert names == [run.path.name for run in self.watch.folders()]
        assert len(names) == RUNS * self.crew.seeds
        differences = [
            difference
            for name in names
            for difference in differ(RunFolder(calm / "runs" / name), RunFolder(self.store / "runs" / name))
        ]
        assert not differences, "\n".join(differences)
        count, lost = sum(self.watch.attempts.values()), self.watch.taken_over
        self.say(f"{len(names)} runs are as they were, in {count} attempts; {lost} were lost to others while alive")
        self.say(f"{len(self.damaged)} checkpoints were damaged, and the ones before them gone on from")


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
        stack.callback(storm.crew.end)
        stack.enter_context(no_longer_than(ROUND_SECONDS * rounds + REST_SECONDS, storm.crew.report))
        try:
            storm.rage(rounds)
            storm.calm_down()
            storm.compare()
        except BaseException:
            storm.crew.end()
            if disk:
                shutil.copytree(disk.folder, folder / "left", ignore=shutil.ignore_patterns("filler"))
            raise
        return storm


@contextlib.contextmanager
def no_longer_than(seconds: float, report: Callable[[], str]) -> Iterator[None]:
    """Raises `Broken` with a report after so many seconds, whatever is waited for; in the main thread alone."""

    def ring(*_: object) -> None:
        raise Broken(f"not over after {seconds} seconds\n{report()}")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.end_to_end.torture", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32))
    parser.add_argument("--keep", type=Path, help="a folder that stays, for whoever looks for a cause")
    options = parser.parse_args()
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = options.keep.absolute() if options.keep else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        print(f"--rounds {options.rounds} --seed {options.seed}")
        storm = torture(folder, options.rounds, options.seed, disk_can_fill=SmallDisk.can_be(folder / "disk"))
    for counted in (storm.happened, storm.phases):
        print(", ".join(f"{count} {name}" for name, count in sorted(counted.items())))
    print(f"{time.monotonic() - began:.0f} seconds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
