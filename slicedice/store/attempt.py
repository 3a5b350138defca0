"""An attempt at a run: what one process, or several together, trained of it before they ended.

`attempts/N/` holds what an attempt writes: metrics, checkpoints, the finished model, how it ended. Nobody else writes
there. Elsewhere an attempt writes three things: the run's result, which is made once, so that the first one stays;
after a result of its own, `evaluations/`; and lines for people, in the run's log and to `execution.writers`. So a
process that lost its run without noticing (its machine slept, or the network was gone) cannot disturb the one that took
over: nobody reads what it goes on to write. It finds out with its next sign of life. Then it logs no more there, stops
after the step that runs, and makes neither a model nor a result. If it was finished before, its result is the run's.

`claim.json` appears whole, and once: of several processes that want attempt N, one gets it. It then gives signs of life
in `beat.json`. Another may begin attempt N + 1 when this one has ended, its process is certainly gone, or it has
given no sign for a minute, by the clock of the one who waits: clocks of two machines are not compared to decide that.
"""

import math
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from slicedice.store import metrics
from slicedice.store.files import is_object, read_json, write_json
from slicedice.store.holder import Holder
from slicedice.store.kinds import FAILURES, Kind, RunState

BEAT_SECONDS = 10.0
"""Between two signs of life."""

SILENCE_SECONDS = 60.0
"""Without one, after which an attempt is over."""

COMMITTED = "commit_success.txt"
"""What Orbax writes last into a checkpoint in a bucket, where it cannot rename a folder."""


@dataclass(frozen=True)
class Signs:
    """The newest sign of life of an attempt.

    count: that changes with every sign. at: when by the holder's clock, in seconds since 1970; for people.
    step, seconds_per_step: how far it is, and how fast; None before the first steps.
    """

    count: int
    at: float
    step: int | None = None
    seconds_per_step: float | None = None


class Attempt:
    """One attempt, as others see it."""

    def __init__(self, run: Path, number: int):
        self.run, self.number = run, number
        self.path = run / "attempts" / str(number)
        self.metrics = self.path / "metrics.jsonl"
        self.evaluation_lines = self.path / "evaluations.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self._claim, self._beat, self._end, self._data = (
            self.path / f"{name}.json" for name in ("claim", "beat", "end", "data")
        )

    @property
    def holder(self) -> Holder | None:
        """The process whose attempt it is; None if that cannot be read."""
        return Holder.read((read_json(self._claim) or {}).get("holder") or {})

    @property
    def is_claimed(self) -> bool:
        """Whether it was begun; or else who wanted it died before, or the disk was full."""
        return self._claim.exists()

    @property
    def signs(self) -> Signs:
        """The newest sign of life."""
        known = {**(read_json(self._claim) or {}), **(read_json(self._beat) or {})}
        try:
            step, seconds = _number(known.get("step")), _number(known.get("seconds_per_step"))
            return Signs(int(known["count"]), float(known["at"]), None if step is None else int(step), seconds)
        except (KeyError, OverflowError, TypeError, ValueError):
            return Signs(-1, 0.0)

    @property
    def fingerprint(self) -> str | None:
        """Of the text it trained on; None if it did not come that far."""
        found = (read_json(self._data) or {}).get("fingerprint")
        return found if isinstance(found, str) else None

    @property
    def steps(self) -> int:
        """How many it has metrics for, with those that it took over from earlier ones."""
        last = metrics.last_step(self.metrics)
        return 0 if last is None else last + 1

    @property
    def has_checkpoint(self) -> bool:
        """Whether it has a checkpoint to go on from."""
        # Beside those that are whole may be what Orbax had half written, with more in its name, or without its mark.
        steps = (path for path in self.checkpoints.glob("training/[0-9]*") if path.name.isdecimal())
        return any(not is_object(path) or (path / COMMITTED).exists() for path in steps)

    def ending(self) -> RunState | None:
        """How it ended, if it said so: without a result by its kind, or else as DONE or DIVERGED."""
        if not self._end.exists():  # asked first: it may appear at any moment, and is whole then
            return None
        content = read_json(self._end) or {}
        kind = content.get("kind")
        if kind not in (*FAILURES, Kind.DONE, Kind.DIVERGED):
            return RunState(Kind.CRASHED, reason="its end.json is damaged")
        return RunState(Kind(kind), reason=str(content.get("reason") or ""))

    @property
    def is_certainly_over(self) -> bool:
        """Whether it said how it ended, or its process is known to be gone."""
        return self._end.exists() or bool((holder := self.holder) and holder.is_gone())

    def seems_alive(self) -> bool:
        """Whether somebody seems to train it now: a guess, made at once, by what the holder's clock says."""
        if self.is_certainly_over:
            return False
        return abs(time.time() - self.signs.at) < SILENCE_SECONDS

    def is_over(self, *, patient: bool = False, stop: Callable[[], bool] = lambda: False) -> bool:
        """Whether it is safe to begin another one.

        Args:
          patient: whether to wait for signs of life also where the last one seems fresh, for as long as a minute.
          stop: asked while waiting; ends it with False.
        """
        if not patient and self.seems_alive():
            return False
        first, began = self.signs, time.monotonic()
        while True:
            if self.is_certainly_over:
                return True
            if self.signs.count != first.count or stop():
                return False
            if time.monotonic() - began > SILENCE_SECONDS:
                return True
            time.sleep(min(1.0, SILENCE_SECONDS / 20))

    def end_for_it(self, kind: Kind, reason: str) -> None:
        """Writes how it ended for a process that cannot, unless it did; for the parent that saw it end."""
        if not self._end.exists():
            self._write_end(kind, reason)

    @property
    def was_told(self) -> bool:
        """Whether it was told to end, or lost the run or the bucket: none of these says anything of the run itself."""
        return (read_json(self._end) or {}).get("told") is True

    def _write_end(self, kind: Kind, reason: str, *, told: bool = False) -> None:
        write_json(self._end, {"kind": kind, "reason": reason, "told": told})


def attempts(run: Path) -> list[Attempt]:
    """All attempts at a run, the newest first."""
    numbers = (int(path.name) for path in (run / "attempts").glob("*") if re.fullmatch("[1-9][0-9]*", path.name))
    return [Attempt(run, number) for number in sorted(numbers, reverse=True)]


def still_made(some: Iterable[Attempt]) -> list[Attempt]:
    """Those attempts that may still be made: they seem alive, or one minute, which is waited for all, brings a sign."""
    doubtful = [one for one in some if one.is_claimed and not one.is_certainly_over]
    alive = [one for one in doubtful if one.seems_alive()]
    silent, began = [(one, one.signs.count) for one in doubtful if one not in alive], time.monotonic()
    while silent and time.monotonic() - began <= SILENCE_SECONDS:
        time.sleep(min(1.0, SILENCE_SECONDS / 20))
    return alive + [one for one, count in silent if one.signs.count != count]


def _number(value: object) -> float | None:
    """A number that was read, or None for what is none."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None
