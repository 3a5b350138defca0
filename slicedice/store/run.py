"""One run's folder, and what it says of the run's state.

`spec.json` is what is trained, `result.json` appears, whole, when it is done, `failure.json` says how it
ended otherwise. The folder's lock is held by whoever trains it, and is let go of by the system when that
process dies, however it dies. So the state needs no heartbeat, and no half-written run counts as done.
`evaluations/` has a file for each evaluation of the finished run on other text than its own, `evaluations.jsonl` a
line for each while it trained; neither has a say in its state.
The folder is called as its run's id: what lies beside another run's `spec.json`, or beside none, is not used.
"""

import dataclasses
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from slicedice.spec import SCHEMA, Execution, RunSpec, canonical_json
from slicedice.spec.identity import id_of_json
from slicedice.store import metrics
from slicedice.store.files import StoreError, read_json, safe_name, write_json, write_whole


class Kind(StrEnum):
    """The states of a run. DONE and DIVERGED are results; the kinds after them are failures."""

    MISSING = "missing"
    RUNNING = "running"
    DONE = "done"
    DIVERGED = "diverged"
    PREEMPTED = "preempted"
    CRASHED = "crashed"
    OUT_OF_MEMORY = "out_of_memory"

    @property
    def has_result(self) -> bool:
        """Whether the run is over and reports may read it."""
        return self in (Kind.DONE, Kind.DIVERGED)

    @property
    def needs_retry(self) -> bool:
        """Whether it would fail again as it is, and so runs again only when asked to."""
        return self in (Kind.CRASHED, Kind.OUT_OF_MEMORY)


@dataclass(frozen=True)
class RunState:
    """A run's kind, the steps it has metrics for, and why it failed if it did."""

    kind: Kind
    steps: int = 0
    reason: str = ""


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path):
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.log = path / "log.txt"
        self.checkpoints = path / "checkpoints"
        self._spec = path / "spec.json"
        self._result = path / "result.json"
        self._failure = path / "failure.json"
        self._data = path / "data.json"
        self.evaluation_lines = path / "evaluations.jsonl"
        self._evaluations = path / "evaluations"

    def create(self, spec: RunSpec, execution: Execution) -> None:
        """Makes the folder and writes what is to be trained, and how; mends what was damaged there.

        What another run's spec lay beside is removed, so that nothing of it is gone on with.

        Raises:
          StoreError: there is a file instead of the folder, or the folder cannot be read.
        """
        try:
            if self.foreign():
                self.clear()
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read: {error}. Remove it to train the run.") from error
        write_whole(self._spec, canonical_json(spec) + "\n")
        write_json(self.path / "execution.json", dataclasses.asdict(execution))

    def execution(self) -> Execution:
        """How the run is to be executed, as `create` wrote it."""
        return Execution(**(read_json(self.path / "execution.json") or {}))

    def result(self) -> dict[str, Any] | None:
        """What the finished run found; None if it is not done, or this version cannot read it."""
        return self.look()[1]

    def finish(self, kind: Kind, content: dict[str, Any]) -> None:
        """Writes the result, which makes the run count as done."""
        write_json(self._result, {"schema": SCHEMA, "kind": kind, **content})
        self._failure.unlink(missing_ok=True)

    def fail(self, kind: Kind, reason: str) -> None:
        """Writes how the run ended without a result."""
        write_json(self._failure, {"kind": kind, "reason": reason})

    def forget_failure(self) -> None:
        """Lets a failed run be taken up again."""
        self._failure.unlink(missing_ok=True)

    def begin_on(self, fingerprint: str) -> bool:
        """Notes the text that the run trains on; what was trained on other text is removed, and True returned."""
        noted = read_json(self._data) or {}
        other = noted.get("fingerprint", fingerprint) != fingerprint
        if other:
            self.clear()
        write_json(self._data, {"fingerprint": fingerprint})
        return other

    def clear(self) -> None:
        """Removes all that training wrote, so that the run starts over."""
        for path in (self._result, self._failure, self._data, self.metrics, self.evaluation_lines):
            path.unlink(missing_ok=True)
        for folder in (self.checkpoints, self._evaluations):
            shutil.rmtree(folder, ignore_errors=True)

    def write_evaluation(self, name: str, content: dict[str, Any]) -> None:
        """Writes what an evaluation of the finished run found, in place of an earlier one of the name."""
        write_json(self._evaluations / f"{safe_name(name)}.json", {"schema": SCHEMA, "name": name, **content})

    def append_evaluation(self, step: int, name: str, scores: dict[str, Any]) -> None:
        """Adds the line of an evaluation after `step` steps."""
        with open(self.evaluation_lines, "ab") as file:
            file.write(json.dumps({"step": step, "name": name, "scores": scores}).encode() + b"\n")

    def cut_evaluations(self, step: int) -> None:
        """Drops the lines of evaluations after `step` steps or more."""
        metrics.cut(self.evaluation_lines, step)

    def record(self) -> metrics.Writer:
        """What the run's metrics are written with."""
        return metrics.Writer(self.metrics)

    def evaluations(self) -> dict[str, dict[str, Any] | None]:
        """What evaluations of the finished run found, by name; None, by file name, for what cannot be read."""
        found: dict[str, dict[str, Any] | None] = {}
        for path in sorted(self._evaluations.glob("*.json")):
            content = read_json(path)
            whole = content is not None and content.get("schema") == SCHEMA and isinstance(content.get("name"), str)
            found[content["name"] if content and whole else path.name] = content if whole else None
        return found

    def state(self) -> RunState:
        """Reads the run's state off its files and its lock."""
        return self.look()[0]

    def look(self) -> tuple[RunState, dict[str, Any] | None]:
        """The run's state, and its result if it has one that this version can read.

        A folder that the system cannot read, as where there is a file instead, is a crash: sweeps go on without it.
        """
        try:
            foreign = self.foreign()
            if foreign:
                return RunState(Kind.RUNNING) if self.is_locked() else RunState(Kind.MISSING, reason=foreign), None
            result = read_json(self._result)
            fault = _fault(result) if result else "it is damaged" if self._result.exists() else ""
            if result and not fault:
                return RunState(Kind(result["kind"]), result["steps"]), result
            return self._unfinished(f"its result.json cannot be read: {fault}" if fault else ""), None
        except OSError as error:
            return RunState(Kind.CRASHED, reason=f"its folder cannot be read: {error}; mend or remove it"), None

    def foreign(self) -> str:
        """Why what lies in the folder is not this run's; "" if it is, or nothing does."""
        replaced = "training the run replaces what is there"
        try:
            text = self._spec.read_text(encoding="utf-8")
        except FileNotFoundError:
            trained = any(p.exists() for p in (self._result, self._failure, self.metrics, self.checkpoints))
            return f"its spec.json is missing ({replaced})" if trained else ""
        try:
            id_ = id_of_json(text)
        except ValueError:
            return f"its spec.json is damaged or of another version ({replaced})"
        return "" if id_ == self.path.name else f"its spec.json is of another run, as in a copied folder ({replaced})"

    def _unfinished(self, fault: str) -> RunState:
        """The state of a run without a result; `fault` says why there is none, if there is a file."""
        last = metrics.last_step(self.metrics)
        steps = 0 if last is None else last + 1
        if self.is_locked():
            return RunState(Kind.RUNNING, steps)
        failure = read_json(self._failure)
        if failure or self._failure.exists():
            kind, reason = (failure or {}).get("kind"), (failure or {}).get("reason")
            if kind not in (Kind.PREEMPTED, Kind.CRASHED, Kind.OUT_OF_MEMORY):
                return RunState(Kind.CRASHED, steps, "its failure.json is damaged")
            return RunState(Kind(kind), steps, str(reason))
        if steps or self.checkpoints.exists():
            return RunState(Kind.PREEMPTED, steps, fault or "its worker ended without a word")
        return RunState(Kind.MISSING, reason=fault)

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Holds the run while training it; yields False if another process does."""
        with open(self.path / "lock", "a") as file:
            yield _take(file.fileno())

    def is_locked(self) -> bool:
        """Whether some process trains this run now."""
        try:
            descriptor = os.open(self.path / "lock", os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            # A shared lock, so that two lookers do not take each other for a worker.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


class Onlooker(RunFolder):
    """The folder of a run for a process that trains it with others, and leaves writing to the first of them.

    Its log is its own: `log-1.txt` of the second process, and so on.
    """

    def __init__(self, folder: RunFolder, process: int):
        super().__init__(folder.path)
        self.log = self.path / f"log-{process}.txt"

    def finish(self, kind: Kind, content: dict[str, Any]) -> None:
        """Left to the first process, as are all below."""

    def fail(self, kind: Kind, reason: str) -> None:
        """See `finish`."""

    def forget_failure(self) -> None:
        """See `finish`."""

    def begin_on(self, fingerprint: str) -> bool:
        """See `finish`."""
        return False

    def write_evaluation(self, name: str, content: dict[str, Any]) -> None:
        """See `finish`."""

    def append_evaluation(self, step: int, name: str, scores: dict[str, Any]) -> None:
        """See `finish`."""

    def cut_evaluations(self, step: int) -> None:
        """See `finish`."""

    def record(self) -> metrics.Writer:
        """See `finish`."""
        return metrics.Mute()

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """See `finish`."""
        yield False


def _fault(result: dict[str, Any]) -> str:
    """Why a result cannot be read; "" if it can."""
    if result.get("schema") != SCHEMA:
        return f"it is of schema {result.get('schema')!r}, and this version reads {SCHEMA}"
    if result.get("kind") not in (Kind.DONE, Kind.DIVERGED) or type(result.get("steps")) is not int:
        return f"it ends in {result.get('kind')!r} after {result.get('steps')!r} steps"
    return ""


def _take(descriptor: int) -> bool:
    """Locks for good; tries for a second, since whoever looks at the lock holds it for a moment."""
    for _ in range(20):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return True
    return False
