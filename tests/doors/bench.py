"""A worker whose training is made up: what it does with runs, without any being trained."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from slicedice import data, work
from slicedice.spec import Execution, RunSpec, run_id
from slicedice.store import Claim, RunFolder, Store
from slicedice.worker import Worker

SCORES = {"held_out": {"macro": {"nats": 2.0, "bits_per_byte": 3.0, "targets": 4}}}

MOE = {"model__experts": "n=4 g=1/2"}
"""Settings of a layer that is one of experts."""


class Program:
    """Stands for compiled functions."""

    width = 1

    def __init__(self, spec: RunSpec, execution: Execution):
        self.spec, self.execution = spec, execution

    def model(self, state: str) -> str:
        return f"the model of {state}"


class Checkpoints:
    def __init__(self, folder: Path, earlier: list[tuple[Path, int]], before: Callable[[], None]):
        self.run, self.earlier = folder.parents[2], earlier

    def save_model(self, state: str) -> None:
        assert not (self.run / "result.json").exists()
        (self.run / "finished.txt").write_text(state)

    def drop_training_state(self) -> None:
        # Only when the result is there: otherwise a death in between would cost the whole run.
        assert (self.run / "result.json").exists()

    def close(self) -> None:
        pass


class Bench:
    """A store with runs to train, and a training that ends as `ends` says, one call after the other."""

    def __init__(self, store: Store, make: Callable[[dict[str, Any]], tuple[RunSpec, Execution]]):
        self.store, self._make = store, make
        self.calls: list[tuple[Program, RunSpec]] = []
        self.ends: list[BaseException | None] = []
        self.earlier: list[list[tuple[Path, int]]] = []
        self.during: Callable[[RunFolder], object] = lambda folder: None
        self.worker = Worker(store)

    def add(self, **overrides: Any) -> str:
        spec, execution = self._make({name.replace("__", "."): value for name, value in overrides.items()})
        self.store.run(spec).create(spec, execution)
        d = spec.data
        data.prepare(d.source, d.tokenizer, self.store.data, d.heldout_fraction)  # as what launches a run does
        return run_id(spec)

    @property
    def claim(self) -> Claim:
        """By which the worker trains the run that it trains."""
        return self._leaves.args[0]

    def train(self, program, spec, tokens, checkpoints, *, begin, report, should_stop, **_: Any) -> str:
        self._leaves = should_stop
        self.calls.append((program, spec))
        self.earlier.append(checkpoints.earlier)
        begin(0)
        for step in range(4):
            report({"step": step, "loss": float(step)})
        logging.getLogger("slicedice.training").warning("training seed %d", spec.seed)
        self.during(self.store.run(spec))
        end = self.ends.pop(0) if self.ends else None
        if end is not None:
            raise end
        return f"seed {spec.seed}"

    def main(self, *runs: str) -> int:
        return work.main(["--store", str(self.store.root), *runs])

    def log(self, run: str) -> str:
        return self.store.run(run).log_of(0).read_text()
