"""What a worker evaluates: a run's held-out text, and what else the run is asked to be evaluated on."""

import logging
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slicedice import evaluation
from slicedice.data import DataError, TokenStore
from slicedice.spec import Execution, RunSpec
from slicedice.store.files import is_disk_full

if TYPE_CHECKING:
    from slicedice.model import Decoder

log = logging.getLogger("slicedice.work")


class _Stop(Exception):
    """An evaluation was asked to stop."""


@dataclass(frozen=True)
class Evaluator:
    """Evaluates models of one run.

    spec, execution: the run. tokens: what it trains on. tasks: the store's folder of task files.
    should_stop: asked before every batch.
    """

    spec: RunSpec
    execution: Execution
    tokens: TokenStore
    tasks: Path
    should_stop: Callable[[], bool]

    @property
    def _batch_size(self) -> int:
        """Sequences of all devices at a time."""
        return self.execution.micro_batch * self.execution.mesh_shape.devices

    def held_out(self, model: "Decoder") -> dict[str, Any]:
        """Scores on the held-out text, as `evaluation.held_out` gives them."""
        from slicedice import training

        routing = training.routing_of(self.spec, self.execution)
        return evaluation.held_out(model, self.tokens, self.spec, routing, batch_size=self._batch_size)

    def others(self, model: "Decoder", but: Container[str] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
        """Name and content of each evaluation that the run is asked for; of one that fails, why, in the log as well.

        Ends early, with a line in the log, when asked to stop.
        """
        from slicedice import training
        from slicedice.evaluation.scoring import scorers
        from slicedice.parallel.processes import greatest

        window = self.spec.data.sequence_length
        ways = scorers(model, self.spec, training.routing_of(self.spec, self.execution), window)
        ways = {name: self._stopping(score) for name, score in ways.items()}
        seen: set[str] = set()
        asked = evaluation.Asked.of(self.execution)
        for kind, name in asked.each():
            try:
                found = evaluation.find(kind, name, asked.data_dir, self.tasks)
                if found.name in seen:
                    raise DataError(f"{name} is called {found.name!r}, as another evaluation is. Rename one.")
                name = found.name
                seen.add(name)
                if greatest(name in but):  # of what is there already, only the process that writes it is sure
                    continue
                settings = evaluation.Settings(window, window)
                content = found.evaluate(ways, self.tokens.tokenizer, settings, batch_size=self._batch_size)
            except _Stop:
                log.warning("asked to stop: not evaluated on %s; `python -m slicedice.evaluate` does it", name)
                return
            except Exception as error:
                if is_disk_full(error):
                    raise
                log.warning("the evaluation on %s failed: %s", name, error, exc_info=not isinstance(error, DataError))
                content = {"kind": "failed", "reason": f"{error}" or type(error).__name__}
            yield name, content

    def _stopping(self, score: Callable[..., Any]) -> Callable[..., Any]:
        """The same way to score, which raises when asked to stop."""
        from slicedice.parallel.processes import greatest

        def scored(*batch: Any) -> Any:
            if greatest(self.should_stop()):
                raise _Stop
            return score(*batch)

        return scored
