"""The attempt that this process makes at a run."""

import json
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

from slicedice.spec import SCHEMA
from slicedice.store import attempt, metrics
from slicedice.store.attempt import Attempt
from slicedice.store.drafts import Draft
from slicedice.store.files import BucketError, create, is_disk_full, read_json, write_json
from slicedice.store.holder import Holder
from slicedice.store.kinds import Kind

log = logging.getLogger(__name__)


class Claim(Attempt):
    """An attempt while this process makes it; as a context it gives signs of life, and at its end is over.

    Made by `RunFolder.claim`.
    """

    writes = True

    def __init__(self, run: Path, number: int):
        super().__init__(run, number)
        self._count, self._step, self._seconds = 0, None, None
        self._me, self._heard = Holder.here(), time.monotonic()
        self._over, self._ended = threading.Event(), False
        self._gone, self._cancelled = "", False
        self._thread = threading.Thread(target=self._live, name=f"signs of {run.name}", daemon=True)
        self._drafts: list[Draft] = []

    def take(self) -> bool:
        """Tries to be the one whose attempt it is."""
        return create(self._claim, {"holder": self._me.as_dict(), "count": 0, "at": time.time()})

    def __enter__(self) -> "Claim":
        self._drafts = [Draft(self.metrics), Draft(self.evaluation_lines)]
        self.metrics, self.evaluation_lines = (draft.path for draft in self._drafts)
        self._thread.start()
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._over.set()
        self._thread.join()
        if not self._ended:
            self.fail(Kind.PREEMPTED, f"its worker ended: {error!r}" if error else "it was let go of")
        for draft in self._drafts:
            try:
                draft.close()
            except OSError as refused:
                log.warning("%s is not all uploaded: %s", draft.target, refused)
        self._drafts = []

    @property
    def is_taken(self) -> bool:
        """Whether the run is another process's by now."""
        return bool(self._gone)

    @property
    def is_lost(self) -> bool:
        """Whether the run is another process's, or may be: training it has to end."""
        return bool(self.loss)

    @property
    def loss(self) -> str:
        """Why it is lost; "" if it is not."""
        silent = time.monotonic() - self._heard > attempt.SILENCE_SECONDS
        return self._gone or ("no sign of life could be given for a minute" if silent else "")

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody asked for an end; known with the next sign of life."""
        return self._cancelled

    def progress(self, step: int, seconds_per_step: float | None) -> None:
        """Says how far it is; others see it with the next sign of life."""
        self._step, self._seconds = step, seconds_per_step

    def _live(self) -> None:
        while not self._over.wait(attempt.BEAT_SECONDS):
            self.beat()

    def beat(self) -> None:
        """Gives a sign of life, and looks whether the run is still to be trained here."""
        self._count += 1
        signs = {"count": self._count, "at": time.time(), "step": self._step, "seconds_per_step": self._seconds}
        try:
            self._cancelled = (self.run / "cancel.json").exists()
            self._gone = self._gone or self._who_has_it()
            if self._gone:
                return
            write_json(self._beat, signs, durable=False)
        except OSError as error:
            log.warning("no sign of life could be given: %s", error)
        else:
            self._heard = time.monotonic()

    def _who_has_it(self) -> str:
        """Why the run is not this process's any more; "" if it is."""
        if max((one.number for one in attempt.attempts(self.run)), default=0) > self.number:
            return "another process took it up"
        if self.holder != self._me:  # others may have begun anew there
            return "its folder was cleared"
        result = read_json(self.run / "result.json") or {}
        finished = not fault(result) and result.get("attempt") != self.number
        return "another attempt finished it" if finished else ""

    # What is written below goes into this attempt's folder alone, but for the result.

    def begin_on(self, fingerprint: str) -> list[Attempt]:
        """Notes the text that is trained on; returns the attempts that may be gone on from, the newest first.

        What was trained on other text is left where it is.
        """
        write_json(self._data, {"fingerprint": fingerprint})
        earlier = [other for other in attempt.attempts(self.run) if other.number < self.number]
        return [other for other in earlier if other.fingerprint == fingerprint]

    def take_over(self, earlier: Attempt, steps: int) -> None:
        """Copies what an earlier attempt wrote of its first `steps` steps, in place of what is here."""
        # Metrics come last: by them the next one sees that it may take over from here.
        metrics.copy(earlier.evaluation_lines, self.evaluation_lines, steps + 1)
        self.publish()
        metrics.copy(earlier.metrics, self.metrics, steps)

    def record(self) -> metrics.Writer:
        """What the run's metrics are written with."""
        return metrics.Writer(self.metrics)

    def publish(self) -> None:
        """Has others find all lines written by now: before a checkpoint of their steps, and before the result."""
        for draft in self._drafts:
            draft.publish()

    def append_evaluation(self, step: int, name: str, scores: dict[str, Any]) -> None:
        """Adds the line of an evaluation after `step` steps; it is on disk when this returns.

        So no checkpoint outlives in a power cut what was evaluated before it, and would not be again.
        """
        with open(self.evaluation_lines, "ab") as file:
            file.write(json.dumps({"step": step, "name": name, "scores": scores}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def cut_evaluations(self, step: int) -> None:
        """Drops the lines of evaluations after `step` steps or more."""
        metrics.cut(self.evaluation_lines, step)

    def finish(self, kind: Kind, content: dict[str, Any]) -> bool:
        """Writes the run's result, which makes it count as done.

        Returns:
          Whether the run has this result; False if another attempt was first, whose result stays: this one has failed.
        """
        self.publish()
        path, result = self.run / "result.json", {"schema": SCHEMA, "kind": kind, "attempt": self.number, **content}
        if not create(path, result):
            if not fault(read_json(path)):
                log.warning("another attempt finished first: its result stays")
                self._gone = "another attempt finished it"
                return False
            write_json(path, result)
        self._write_end(kind, "")
        self._ended = True
        return True

    def fail(self, kind: Kind, reason: str, *, told: bool = False) -> None:
        """Writes how the attempt ended without a result.

        Args:
          kind, reason: why.
          told: whether it was told to end, or lost the run or the bucket, which says nothing of the run itself.
        """
        try:
            self.publish()
            self._write_end(kind, reason, told=told)
        except OSError as error:
            if not (is_disk_full(error) or isinstance(error, BucketError)):
                raise
            log.warning("there was no room, or no bucket, to write that it ended (%s: %s): %s", kind, reason, error)
        self._ended = True


class Onlooker(Attempt):
    """The same attempt for a process that makes it with others, and leaves writing to the first of them."""

    writes = False
    is_taken = is_lost = is_cancelled = False
    loss = ""

    def __enter__(self) -> "Onlooker":
        return self

    def __exit__(self, *_: object) -> None:
        """The first process ends it."""

    def progress(self, step: int, seconds_per_step: float | None) -> None:
        """Left to the first process, as are all below."""

    def beat(self) -> None:
        """See `progress`."""

    def begin_on(self, fingerprint: str) -> list[Attempt]:
        """See `Claim.begin_on`; the first process has written it."""
        earlier = [other for other in attempt.attempts(self.run) if other.number < self.number]
        return [other for other in earlier if other.fingerprint == fingerprint]

    def take_over(self, earlier: Attempt, steps: int) -> None:
        """See `progress`."""

    def record(self) -> metrics.Writer:
        """See `progress`."""
        return metrics.Mute()

    def publish(self) -> None:
        """See `progress`."""

    def append_evaluation(self, step: int, name: str, scores: dict[str, Any]) -> None:
        """See `progress`."""

    def cut_evaluations(self, step: int) -> None:
        """See `progress`."""

    def finish(self, kind: Kind, content: dict[str, Any]) -> bool:
        """See `progress`; whether the run has the result, the first process knows."""
        return True

    def fail(self, kind: Kind, reason: str, *, told: bool = False) -> None:
        """See `progress`."""


def fault(result: dict[str, Any] | None) -> str:
    """Why a result cannot be read; "" if it can."""
    if not result:
        return "it is damaged"
    if result.get("schema") != SCHEMA:
        return f"it is of schema {result.get('schema')!r}, and this version reads {SCHEMA}"
    if result.get("kind") not in (Kind.DONE, Kind.DIVERGED) or type(result.get("steps")) is not int:
        return f"it ends in {result.get('kind')!r} after {result.get('steps')!r} steps"
    return ""
