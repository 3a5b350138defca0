"""What a worker tells of a run while it trains, and to which writers."""

import contextlib
import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slicedice.spec import Execution, RunSpec, run_id, run_name
from slicedice.spec.config import listed
from slicedice.spec.identity import flat
from slicedice.store import Attempt, Store, metrics
from slicedice.writers.installed import declared

if TYPE_CHECKING:
    from slicedice.writers.interface import MetricWriter

log = logging.getLogger("slicedice.writers")

EVERY_SECONDS = 1.0
"""Between two points of a curve. Steps may take milliseconds, and no one looks at more."""


@dataclass(frozen=True)
class _Sink:
    """A writer by name. `forgets` says whether it is told at which step a run goes on, and forgets what came after."""

    name: str
    writer: "MetricWriter"
    forgets: bool


class RunWriter:
    """Hands one run's metrics to the writers of `execution.writers`.

    About one point a second is written, as it is in `metrics.jsonl`, and the last one: nothing is averaged. Beside it
    is how far the run is, and how fast. Evaluations are written as they come.

    A writer that fails is named in the log, once, and left out from then on. None of its failures is the run's.

    When a run goes on from a checkpoint, steps after it are trained again. TensorBoard is told so, and shows them once,
    as they were last. Other writers cannot take anything back, and are not given what they had.
    """

    def __init__(self, spec: RunSpec, execution: Execution, store: Store):
        """Opens nothing yet.

        Args:
          spec, execution: the run.
          store: where the writers' own files go, in `tensorboard/` and `wandb/`.
        """
        self._spec, self._execution, self._store = spec, execution, store
        self._sinks: list[_Sink] = []
        self._seen = -1
        self._evaluated: set[tuple[int, str]] = set()
        self._pending: tuple[int, Mapping[str, float]] | None = None
        self._written, self._since = -1, -math.inf

    def begin(self, step: int, attempts: Sequence[Attempt]) -> None:
        """Opens the writers; training goes on from `step`. Of several processes on a run, only the first has any.

        Has to come before lines from `step` on are cut off the attempt's own files, which tell what writers had.

        Args:
          step: the first that is trained.
          attempts: this one, and those that it may go on from, the newest first.
        """
        names = listed("execution.writers", self._execution.writers)
        if not names:
            return
        from slicedice.parallel import processes

        if not processes.leads():
            return
        self._seen = max(one.steps for one in attempts) - 1
        lines = {one.number: list(metrics.read(one.evaluation_lines)) for one in attempts}
        self._evaluated = {(line["step"], line["name"]) for own in lines.values() for line in own}
        for name in names:
            try:
                self._sinks.append(self._open(name, step, attempts))
            except Exception as error:
                self._tell(name, error)
        self._each(lambda sink: sink.writer.write_hparams(_settings(self._spec, self._execution)))
        source = next((one for one in attempts if one.steps >= step), attempts[0])
        for line in lines[source.number]:
            if line["step"] == step:  # which stays, though training goes on from there
                self._write(step, _scores(line["name"], line["scores"]), had=True)
        self._each(lambda sink: sink.writer.flush())

    def step(self, values: Mapping[str, float]) -> None:
        """Takes the metrics of a step, as they are for `metrics.jsonl`."""
        if self._sinks:
            self._pending = int(values["step"]), {name: value for name, value in values.items() if name != "step"}
            if time.monotonic() - self._since >= EVERY_SECONDS:
                self._catch_up()

    def evaluation(self, step: int, name: str, scores: Mapping[str, Any]) -> None:
        """Takes the scores of an evaluation after `step` steps, as they are for `evaluations.jsonl`."""
        if self._sinks:
            self._catch_up()  # steps have to come in order
            self._write(step, _scores(name, scores), had=(step, name) in self._evaluated)
            self._each(lambda sink: sink.writer.flush())
            self._since = time.monotonic()  # the time it took is none of the steps'

    def close(self) -> None:
        """Writes the last step, and closes the writers."""
        self._catch_up()
        self._each(lambda sink: sink.writer.close())
        self._sinks = []

    def _catch_up(self) -> None:
        """Writes the newest step, unless it is written."""
        if self._pending is None:
            return
        (step, values), self._pending, now = self._pending, None, time.monotonic()
        budget = self._spec.budget
        tokens = budget.batch_size * self._spec.data.sequence_length
        progress = {"share": (step + 1) / budget.steps, "tokens": (step + 1) * tokens}
        if self._written >= 0:  # before the first step comes its compilation
            progress["tokens_per_second"] = (step - self._written) * tokens / max(now - self._since, 1e-6)
        named = {f"train/{name}": value for name, value in values.items()}
        named |= {f"progress/{name}": value for name, value in progress.items()}
        self._write(step, named, had=step <= self._seen)
        self._each(lambda sink: sink.writer.flush())
        self._written, self._since = step, now

    def _write(self, step: int, values: Mapping[str, float], *, had: bool) -> None:
        """Writes to all; what they `had` before the run was interrupted, to those that forgot it."""
        self._each(lambda sink: sink.writer.write_scalars(step, values) if sink.forgets or not had else None)

    def _each(self, do: Callable[[_Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                do(sink)
            except Exception as error:
                self._tell(sink.name, error)
                self._sinks.remove(sink)
                with contextlib.suppress(Exception):
                    sink.writer.close()

    def _tell(self, name: str, error: Exception) -> None:
        text = "%s is written to no longer, and the run goes on without: %s: %s"
        log.warning(text, name, type(error).__name__, error)

    def _open(self, name: str, step: int, attempts: Sequence[Attempt]) -> _Sink:
        title = run_name(self._spec)
        readable = re.sub(r"[^a-zA-Z0-9.,=+-]+", "_", title)[:100].strip("._-")
        logs = self._store.here / "tensorboard" / f"{readable}-{run_id(self._spec)}"
        if name == "tensorboard":
            from slicedice.writers.tensorboard import TensorBoardWriter

            return _Sink(name, TensorBoardWriter(logs, step), True)
        if name == "wandb":
            from slicedice.writers.weights_and_biases import WandbWriter, identity

            return _Sink(name, WandbWriter(identity(attempts), title, self._store.here), False)
        from slicedice.writers.interface import MetricWriter

        kind = declared()[name].load()
        if not (isinstance(kind, type) and issubclass(kind, MetricWriter)):
            raise TypeError(f"{kind!r} is no class of clu.metric_writers.MetricWriter")
        return _Sink(name, kind(str(logs)), False)


def _settings(spec: RunSpec, execution: Execution) -> dict[str, bool | int | float | str]:
    """What the run is and how it is executed, by dotted name; without what has no effect."""
    settings = flat(spec) | flat(execution, "execution.")
    return {
        name: value if isinstance(value, bool | int | float) else str(value)
        for name, value in settings.items()
        if value is not None
    }


def _scores(name: str, scores: Mapping[str, Any]) -> dict[str, float]:
    """All numbers of an evaluation by their path, as in "evaluation/held_out/macro/nats"."""
    leaves: dict[str, float] = {}

    def add(path: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                add(f"{path}/{key}", inner)
        elif isinstance(value, int | float):
            leaves[path] = value

    add("evaluation" if name in scores else f"evaluation/{name}", scores)  # the held-out text's own is called so too
    return leaves
