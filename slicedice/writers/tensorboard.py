"""A writer of TensorBoard's event files, without TensorFlow: tensorboardX knows their format."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from slicedice.writers.interface import ScalarWriter

COMPARED = ("evaluation/held_out/macro/nats", "train/loss")
"""What TensorBoard's table of settings shows of each run."""


class TensorBoardWriter(ScalarWriter):
    """Adds an event file to a run's folder, from a step on: readers forget what older files there have of later steps.

    Writes in the calling thread, so that what goes wrong is raised where it can be dealt with. (In tensorboardX's own
    thread a full disk ends that thread, and whoever writes then waits for it for ever.)
    """

    def __init__(self, logdir: Path, first: int):
        """Opens a file in `logdir` whose steps are `first` and later."""
        logdir.mkdir(parents=True, exist_ok=True)
        # Files are read in the order of their names, which have seconds alone; two of one name replace each other.
        self._file = EventsWriter(str(logdir.absolute() / "events"), f".{time.time_ns()}")
        self._add(first, session_log=SessionLog(status=SessionLog.START))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes numbers, as float32, which is what TensorBoard keeps."""
        values = [Summary.Value(tag=name, simple_value=float(value)) for name, value in scalars.items()]
        self._add(step, summary=Summary(value=values))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes settings, for the HParams tab."""
        experiment, start, _ = summary.hparams(dict(hparams), dict.fromkeys(COMPARED))
        self._add(0, summary=experiment)
        self._add(0, summary=start)

    def _add(self, step: int, **what: Any) -> None:
        self._file.write_event(Event(wall_time=time.time(), step=step, **what))

    def flush(self) -> None:
        """Puts what was written on disk."""
        self._file.flush()

    def close(self) -> None:
        """Flushes, and closes the file."""
        self._file.close()
