"""What has to hold at every moment of a storm, read off the store's files."""

import hashlib
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from slicedice.store import Attempt, Kind, RunFolder
from tests.end_to_end.machines import SILENCE_SECONDS, Process

LINES_AFTER_LOSS = 5
"""Of metrics at most, that a worker writes which has lost its run: of the step that ran, and of the one before."""

BEGUN = re.compile(r"^(\d+) INFO .* · ([0-9a-f]+), attempt (\d+)$", re.MULTILINE)
"""What a worker logs when it has a run."""

EXPLAINED = re.compile(r"it was preempted \d+ times in a row without a checkpoint")
"""Why a run may have crashed here."""


class Broken(AssertionError):
    """Something that must hold does not."""


class Watch:
    """Looks at the store again and again, and remembers.

    results: digests of what the runs have that are done, by id. attempts: how many there were at each run.

    Args:
      runs: where they are. steps: that each of them has.
      said: where all that slicedice logs is, with the number of the process first.
    """

    def __init__(self, runs: Path, steps: int, said: Path):
        self._runs, self._steps, self._said = runs, steps, said
        self.results: dict[str, dict[str, str]] = {}
        self.attempts: Counter[str] = Counter()
        self._beats: dict[Path, float] = {}
        self._lost: dict[Path, int] = {}
        self._over: set[Path] = set()
        self._damaged: dict[Path, tuple[Path, int]] = {}

    @property
    def taken_over(self) -> int:
        """How many attempts were over for others, and not for their own process."""
        return len(self._lost)

    def folders(self) -> list[RunFolder]:
        """All runs there are."""
        return [RunFolder(path) for path in sorted(self._runs.glob("[0-9a-f]*"))]

    def look(self) -> None:
        """Looks once.

        Raises:
          Broken: two train one run, or of one that is done the metrics are not whole.
        """
        for run in self.folders():
            name = run.path.name
            if name not in self.results and (run.path / "result.json").exists():
                self.results[name] = self._finished(run)
            made = run.attempts()
            self.attempts[name] = made[0].number if made else 0
            for newer, older in itertools.pairwise(made):
                if older.path in self._over:
                    continue
                if process := trains(older):
                    self._superseded(newer, older, process)
                elif older.holder:
                    self._over.add(older.path)  # for good; to look at all again each time takes a core
            if made and (beat := _modified(made[0].path / "beat.json", made[0].path / "claim.json")):
                self._beats[made[0].path] = beat

    def live(self) -> Iterator[tuple[Attempt, Process]]:
        """Attempts that somebody makes now, or has just finished, and who."""
        for run in self.folders():
            for newest in run.attempts()[:1]:
                result = _modified(run.path / "result.json")
                if process := (_maker(newest) if result and time.time() - result < 1 else trains(newest)):
                    yield newest, process

    def expect_fallback(self, damaged: Path, before: Path) -> None:
        """Has the next one who goes on from a checkpoint of the run go on from the one before the damaged one."""
        self._damaged[damaged] = before, self._said.stat().st_size

    @property
    def damaged(self) -> list[Path]:
        """Checkpoints that were damaged, and that nobody has met yet."""
        return list(self._damaged)

    def judge(self) -> None:
        """Looks at what changes slowly.

        Raises:
          Broken: a result has changed or is gone, a run's state is none that it may have, two had the same attempt,
            or who met a damaged checkpoint did not go on from the one before.
        """
        self.look()
        makers: dict[tuple[str, str], str] = {}
        for process, run, number in BEGUN.findall(self._said.read_text() if self._said.exists() else ""):
            other = makers.setdefault((run, number), process)
            _require(other == process, run, f"was claimed by {other} and by {process}, both as attempt {number}")
        for damaged, (before, since) in list(self._damaged.items()):
            if self._is_passed_by(damaged, before, since):
                del self._damaged[damaged]
        for run in self.folders():
            name, state = run.path.name, run.state()
            if before := self.results.get(name):
                _require(state.kind is Kind.DONE, name, f"had a result, and is {state}")
                now = self._finished(run)
                changed = [path for path in before if now.get(path) != before[path]]
                _require(not changed, name, f"of its result has changed: {changed}")
            elif state.kind is Kind.CRASHED:
                _require(EXPLAINED.match(state.reason) is not None, name, f"crashed: {state.reason}")
            else:
                open_ = state.kind.is_open or state.kind is Kind.DONE  # done since we looked
                _require(open_, name, f"is {state}")

    def _finished(self, run: RunFolder) -> dict[str, str]:
        """Digests of the files of a result, by path."""
        name, result, attempt = run.path.name, run.result(), run.attempt()
        _require(result is not None, name, "has a result that cannot be read")
        steps = [json.loads(line)["step"] for line in attempt.metrics.read_text().splitlines()]
        _require(steps == list(range(self._steps)), name, f"is done, and its metrics are of the steps {steps}")
        model = attempt.checkpoints / "model"
        _require((model / "_METADATA").exists(), name, f"is done, and has no model in {model}")
        files = [run.path / "result.json", attempt.metrics, *(path for path in model.rglob("*") if path.is_file())]
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def _is_passed_by(self, damaged: Path, before: Path, since: int) -> bool:
        """Whether a process has gone on from a checkpoint of the run since so many bytes were logged: from `before`."""
        run = damaged.parents[4]
        with open(self._said, "rb") as file:
            file.seek(since)
            *whole, _ = file.read().decode(errors="replace").split("\n")
        lines = [line for line in whole if f"{run}/" in line]
        gone_on = next((i for i, line in enumerate(lines) if " goes on from the checkpoint of step " in line), None)
        if gone_on is None:
            return False
        process = lines[gone_on].split()[0]
        noticed = f"{process} WARNING the checkpoint of step {damaged.name} in {damaged.parent} cannot be read"
        told = any(line.startswith(noticed) for line in lines[:gone_on])
        _require(told, str(damaged), f"is damaged, and nobody noticed: {lines[gone_on]}")
        right = f"goes on from the checkpoint of step {before.name} in {before.parent}"
        _require(lines[gone_on].endswith(right), str(damaged), f"has {before} before it: {lines[gone_on]}")
        return True

    def _superseded(self, newer: Attempt, older: Attempt, process: Process) -> None:
        """Looks at an attempt that another took over, and that goes on: only for want of signs of life."""
        where = str(older.path)
        claimed = _modified(newer.path / "claim.json")
        if not claimed or not trains(older):
            return
        lines = older.metrics.read_bytes().count(b"\n") if older.metrics.exists() else 0
        if older.path not in self._lost:
            self._lost[older.path] = lines
            silence = claimed - self._beats.get(older.path, 0.0)
            told = f"was taken over after {silence:.2f} seconds without a sign of life, and {process} is alive"
            _require(silence > SILENCE_SECONDS - 0.5, where, told)
        more = lines - self._lost[older.path]
        if more > LINES_AFTER_LOSS:  # it may have been lost before it copied what it was to go on from
            more = min(more, lines - self._copied(older, process))
        _require(more <= LINES_AFTER_LOSS, where, f"was taken over, and {process} has trained {more} steps since")

    def _copied(self, attempt: Attempt, process: Process) -> int:
        """How many lines of metrics a process took over when it went on from an earlier attempt's checkpoint."""
        gone_on = rf"^{process.pid} INFO goes on from the checkpoint of step (\d+) in {re.escape(str(attempt.run))}/"
        steps = re.findall(gone_on, self._said.read_text(errors="replace"), re.MULTILINE)
        return int(steps[-1]) if steps else 0


def trains(attempt: Attempt) -> Process | None:
    """Who makes an attempt, if it is not over and its process is there."""
    return None if (attempt.path / "end.json").exists() else _maker(attempt)


def _maker(attempt: Attempt) -> Process | None:
    holder = attempt.holder
    if holder is None:
        return None
    process = Process(holder.pid, holder.started)
    return process if process.is_alive() else None


def phase(attempt: Attempt | None) -> str:
    """What an attempt is at, by its files."""
    if attempt is None:
        return "before a run"
    if (attempt.run / "result.json").exists():
        return "after the result"
    if any(attempt.checkpoints.glob("model*")):
        return "at the result"
    if any(attempt.checkpoints.glob("training/*[!0-9]*")):
        return "saving"
    return "training" if attempt.metrics.exists() else "before steps"


def _modified(*paths: Path) -> float | None:
    """When the first of the files there are was written, by the file system's clock."""
    for path in paths:
        try:
            return path.stat().st_mtime
        except OSError:
            continue
    return None


def _require(holds: bool, what: str, why: str) -> None:
    if not holds:
        raise Broken(f"{time.strftime('%T')} {what} {why}")
