"""A run's metrics: one JSON line for every step, in order.

A worker that dies may leave a torn last line, or lines past its last checkpoint. Both are cut off when
training goes on, so that the file is what an undisturbed run would have written.
"""

import errno
import io
import itertools
import json
import math
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slicedice.store.files import read_end, write_whole

Metrics = dict[str, Any]


class Writer:
    """Appends the metrics of one run, and knows how fast steps came."""

    def __init__(self, path: Path):
        self._path = path
        self._file: io.FileIO | None = None
        self._times: list[float] = []
        self._synced = 0.0

    def begin(self, step: int) -> None:
        """Drops what was written for `step` and after, since training goes on from there.

        Raises:
          ValueError: lines before `step` are missing or damaged.
        """
        cut(self._path, step)
        kept = last_step(self._path)
        if step != (0 if kept is None else kept + 1):
            raise ValueError(
                f"{self._path} is damaged: the checkpoint is of step {step}, and the metrics before it end at step "
                f"{kept}. Remove the run's folder and run again; it starts over, and no other run is touched."
            )

    def write(self, metrics: Metrics) -> None:
        """Appends the metrics of one step as a line; what is not a finite number, which JSON lacks, as null."""
        if self._file is None:  # not before, since what is there may be replaced by what an earlier attempt wrote
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - closed by close()
        self._times.append(time.monotonic())
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = json.dumps(finite).encode() + b"\n"
        if self._file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        if self._times[-1] - self._synced > 1.0:  # so that a power cut takes no more of it than of a checkpoint
            self.sync()
            self._synced = self._times[-1]

    def sync(self) -> None:
        """Waits until all lines are on disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def seconds_per_step(self) -> float | None:
        """The median time between two lines; None if there were not two."""
        times = self._times
        return statistics.median(b - a for a, b in itertools.pairwise(times)) if len(times) > 1 else None

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


class Mute(Writer):
    """Writes nothing: of several processes on a run, one does."""

    def __init__(self):
        super().__init__(Path(os.devnull))

    def begin(self, step: int) -> None:
        """Drops nothing."""

    def write(self, metrics: Metrics) -> None:
        """Appends nothing."""


def read(path: Path) -> Iterator[Metrics]:
    """Yields the lines that are whole; stops at the first that is not."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            record = _parse(line)
            if record is None:
                return
            yield record


def last_step(path: Path) -> int | None:
    """The step of the last whole line, from the file's end alone; None if there is none."""
    record = last(path)
    return None if record is None else record["step"]


def last(path: Path) -> Metrics | None:
    """The last whole line, from the file's end alone; None if there is none."""
    size = 4096
    try:
        while True:
            end = read_end(path, size)
            records = (_parse(line) for line in reversed(end.splitlines(keepends=True)))
            record = next((record for record in records if record), None)
            if record or len(end) < size:
                return record
            size *= 16
    except FileNotFoundError:
        return None


def cut(path: Path, step: int) -> None:
    """Keeps the lines of steps before `step`, and nothing that follows them."""
    if path.exists():
        os.truncate(path, _size_before(path.read_bytes(), step))


def copy(source: Path, target: Path, step: int) -> None:
    """Makes `target` of the lines of `source`, if it is there, of steps before `step`."""
    try:
        content = source.read_bytes()
    except FileNotFoundError:
        return
    write_whole(target, content[: _size_before(content, step)])


def tail_means(path: Path, count: int) -> Metrics:
    """The mean of every metric over the last `count` steps; None if it was not finite in one of them."""
    records = list(read(path))[-count:]
    names = [name for name in records[-1] if name != "step"] if records else []
    columns = {name: [record[name] for record in records] for name in names}
    return {name: None if None in column else statistics.fmean(column) for name, column in columns.items()}


def _size_before(content: bytes, step: int) -> int:
    """Bytes of the lines of steps before `step`, up to the first that is not whole."""
    size = 0
    for line in content.splitlines(keepends=True):
        record = _parse(line)
        if record is None or record["step"] >= step:
            break
        size += len(line)
    return size


def _parse(line: bytes) -> Metrics | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None
