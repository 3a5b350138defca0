"""One run's folder, and what it says of the run's state.

`spec.json` is what is trained and `execution.json` how; `attempts/` has what each attempt wrote, and who made it;
`result.json` appears, whole, when one of them is done. So no half-written run counts as done.
`evaluations/` has a file for each evaluation of the finished run on other text than its own, which has no say in its
state. `cancel.json` asks for an end; `forgiven.json` says which failures count no more.
The folder is called as its run's id: what lies beside another run's `spec.json`, or beside none, is not used.
"""

import contextlib
import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slicedice.spec import SCHEMA, Execution, RunSpec, canonical_json
from slicedice.spec.identity import id_of_json
from slicedice.store.attempt import Attempt, attempts
from slicedice.store.claim import Claim, fault
from slicedice.store.files import BucketError, StoreError, is_object, read_json, safe_name, write_json, write_whole
from slicedice.store.kinds import MOST_FRUITLESS, Kind, RunState

ID = re.compile("[0-9a-f]{12}")
"""What runs' folders are called."""


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: Path):
        self.path = path
        self._spec = path / "spec.json"
        self._result = path / "result.json"
        self._evaluations = path / "evaluations"
        self._cancel = path / "cancel.json"
        self._forgiven = path / "forgiven.json"

    def create(self, spec: RunSpec, execution: Execution) -> None:
        """Makes the folder and writes what is to be trained, and how.

        What may be another run's is put aside, so that nothing of it is gone on with, and nothing is lost.

        Raises:
          StoreError: there is a file instead of the folder, the folder cannot be read, or it lies in a bucket, where
            nothing is put aside.
        """
        try:
            if foreign := self.foreign():
                self._put_aside(foreign)
            self._cancel.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read: {error}. Remove it to train the run.") from error
        write_whole(self._spec, canonical_json(spec) + "\n")
        write_json(self.path / "execution.json", dataclasses.asdict(execution))

    @property
    def marks(self) -> tuple[Path, ...]:
        """The files with which `cancel` and `forgive` say whether the run is to be trained."""
        return self._cancel, self._forgiven

    def execution(self) -> Execution:
        """How the run is to be executed, as `create` wrote it."""
        return Execution(**(read_json(self.path / "execution.json") or {}))

    def result(self) -> dict[str, Any] | None:
        """What the finished run found; None if it is not done, or this version cannot read it."""
        return self.look()[1]

    def log_of(self, process: int) -> Path:
        """Where a process logs: the first to `log.txt`, others that train the run with it to `log-1.txt` and so on."""
        return self.path / (f"log-{process}.txt" if process else "log.txt")

    def attempts(self) -> list[Attempt]:
        """All attempts at the run, the newest first."""
        return attempts(self.path)

    def attempt(self) -> Attempt:
        """The attempt that made the result, or else the newest that came as far as a step, or else the newest."""
        number = (read_json(self._result) or {}).get("attempt")
        if type(number) is int:
            return Attempt(self.path, number)
        made = self.attempts()
        return next((one for one in made if one.steps), made[0] if made else Attempt(self.path, 1))

    def claim(self, *, patient: bool = False, stop: Callable[[], bool] = lambda: False) -> Claim | None:
        """Begins an attempt, to be used as a context; None if another process makes one, or none is to be made.

        A run that has a result, failed, or was cancelled is left as it is; `forgive` or `create` changes that.

        Args:
          patient, stop: see `Attempt.is_over`, which is asked of the newest attempt.
        """
        made = [one for one in self.attempts() if one.is_claimed]
        if not self.state().kind.is_open or (made and not made[0].is_over(patient=patient, stop=stop)):
            return None
        if not self.state().kind.is_open:  # who trained it may have ended just now
            return None
        mine = Claim(self.path, made[0].number + 1 if made else 1)
        if not mine.take():
            return None
        if result := self.result():  # it has just been finished by an attempt that seemed to be over
            mine.fail(Kind(result["kind"]), "")
            return None
        return mine

    def cancel(self) -> None:
        """Asks for an end: who trains the run saves it and leaves it, and no one begins, until it is created again."""
        write_json(self._cancel, {})

    def forgive(self) -> None:
        """Lets a run that failed be taken up again."""
        made = self.attempts()
        write_json(self._forgiven, {"attempts": made[0].number if made else 0})

    def write_evaluation(self, name: str, content: dict[str, Any]) -> None:
        """Writes what an evaluation of the finished run found, in place of an earlier one of the name."""
        write_json(self._evaluations / f"{safe_name(name)}.json", {"schema": SCHEMA, "name": name, **content})

    def evaluations(self) -> dict[str, dict[str, Any] | None]:
        """What evaluations of the finished run found, by name; None, by file name, for what cannot be read."""
        found: dict[str, dict[str, Any] | None] = {}
        for path in sorted(self._evaluations.glob("*.json")):
            content = read_json(path)
            whole = content is not None and content.get("schema") == SCHEMA and isinstance(content.get("name"), str)
            found[content["name"] if content and whole else path.name] = content if whole else None
        return found

    def state(self) -> RunState:
        """Reads the run's state off its files."""
        return self.look()[0]

    def look(self) -> tuple[RunState, dict[str, Any] | None]:
        """The run's state, and its result if it has one that this version can read.

        A folder that the system cannot read, as where there is a file instead, is a crash: sweeps go on without it.
        """
        try:
            foreign = self.foreign()
            if foreign:
                made = self.attempts()
                alive = bool(made) and made[0].seems_alive()
                return RunState(Kind.RUNNING) if alive else RunState(Kind.MISSING, reason=foreign), None
            result = read_json(self._result)
            if result is None and self._result.exists():  # it cannot be read, or has just come
                result = read_json(self._result) or {}
            wrong = "" if result is None else fault(result)
            if result and not wrong:
                return RunState(Kind(result["kind"]), result["steps"]), result
            state = self._unfinished(f"its result.json cannot be read: {wrong}" if wrong else "")
            return self.look() if result is None and self._result.exists() else (state, None)
        except BucketError:  # which is no run's fault
            raise
        except OSError as error:
            return RunState(Kind.CRASHED, reason=f"its folder cannot be read: {error}; mend or remove it"), None

    def foreign(self) -> str:
        """Why what lies in the folder is not this run's; "" if it is, or nothing does."""
        replaced = "training the run begins a folder of its own, and puts this one aside"
        try:
            text = self._spec.read_text(encoding="utf-8")
        except FileNotFoundError:
            trained = self._result.exists() or (self.path / "attempts").is_dir()
            if trained and self._spec.exists():  # another sweep has just made the run, and a worker begun
                return self.foreign()
            return f"its spec.json is missing ({replaced})" if trained else ""
        try:
            id_ = id_of_json(text)
        except ValueError:
            return f"its spec.json is damaged or of another version ({replaced})"
        return "" if id_ == self.path.name else f"its spec.json is of another run, as in a copied folder ({replaced})"

    def failures(self) -> dict[Kind, int]:
        """How many attempts ended without a result, by kind; those that said nothing were preempted."""
        endings = (one.ending() for one in self.attempts() if not one.seems_alive())
        kinds = (Kind.PREEMPTED if ending is None else ending.kind for ending in endings)
        return dict(Counter(kind for kind in kinds if not kind.has_result))

    def _put_aside(self, why: str) -> None:
        """Has the folder be `ID.aside-NUMBER`, which is no run."""
        if is_object(self.path):
            raise StoreError(f"{self.path} is not the run's: {why}. Move it away, or remove it, to train the run.")
        names = (self.path.with_name(f"{self.path.name}.aside-{number}") for number in itertools.count(1))
        free = next(name for name in names if not name.exists())
        with contextlib.suppress(FileNotFoundError):  # another sweep has just done it
            self.path.rename(free)

    def _unfinished(self, wrong: str) -> RunState:
        """The state of a run without a result; `wrong` says why there is none, if there is a file."""
        made = self.attempts()
        steps = next((one.steps for one in made if one.steps), 0)
        if made and made[0].seems_alive():
            return RunState(Kind.RUNNING, steps)
        if self._cancel.exists():
            return RunState(Kind.CANCELLED, steps, "somebody cancelled it")
        forgiven = (read_json(self._forgiven) or {}).get("attempts")
        counting = [one for one in made if not isinstance(forgiven, int) or one.number > forgiven]
        if not counting:
            return RunState(Kind.PREEMPTED, steps, wrong) if steps else RunState(Kind.MISSING, reason=wrong)
        ending = counting[0].ending() or RunState(Kind.PREEMPTED, reason=wrong or "its worker ended without a word")
        if ending.kind.has_result:
            return RunState(Kind.PREEMPTED if steps else Kind.MISSING, steps, wrong or "its result.json is gone")
        if ending.kind is Kind.CANCELLED:  # and `create` has taken that back
            return RunState(Kind.PREEMPTED, steps, wrong or "it was cancelled before")
        if ending.kind is Kind.PREEMPTED and _fruitless(counting) >= MOST_FRUITLESS:
            times = f"it was preempted {_fruitless(counting)} times in a row without a checkpoint, and not told to stop"
            reason = f"{times}, the last time since {ending.reason}"
            return RunState(Kind.CRASHED, steps, reason)
        return dataclasses.replace(ending, steps=steps)


def _fruitless(made: list[Attempt]) -> int:
    """How many of the newest attempts in a row were preempted, not told to stop, and left no checkpoint."""
    count = 0
    for one in made:
        ending = one.ending()
        if (ending and ending.kind is not Kind.PREEMPTED) or one.has_checkpoint:
            break
        count += not one.was_told
    return count
