"""The training loop of one run, in the order things happen."""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np

from slicedice.data import TokenStore, train_batch
from slicedice.parallel.processes import Vote
from slicedice.spec import RunSpec
from slicedice.training.checkpoint import Checkpoints
from slicedice.training.gradients import Hyper
from slicedice.training.lanes import Lane
from slicedice.training.program import LOST, Program, TrainState

Metrics = dict[str, float | int]

GO_ON, SAVE, STOP = range(3)
"""What a process wishes to do after a step; several do the greatest of their wishes, a step later."""


class Stopped(Exception):
    """Training was asked to stop; its state is saved."""


class Diverged(Exception):
    """The loss is no longer a finite number. This is a result, not an error."""

    def __init__(self, step: int):
        super().__init__(f"the loss was not finite at step {step}")
        self.step = step


class NoRoom(RuntimeError):
    """Tokens were sent to experts whose device had no room for them: the step was not the run's."""


def train(
    program: Program | Lane,
    spec: RunSpec,
    tokens: TokenStore,
    checkpoints: Checkpoints,
    *,
    checkpoint_seconds: float,
    begin: Callable[[int], None],
    report: Callable[[Metrics], None],
    should_stop: Callable[[], bool],
    evaluate: Callable[[TrainState], None] = lambda state: None,
    evaluate_every: int = 0,
) -> TrainState:
    """Trains `spec` from its newest checkpoint, or from the beginning, to the end of its budget.

    Args:
      program: compiled functions of the run's program, or a lane of them.
      spec: the run.
      tokens: what it trains on; batches are a function of (tokens, seed, step).
      checkpoints: where its state is saved.
      checkpoint_seconds: time between checkpoints.
      begin: called once with the step that training starts from.
      report: called with the metrics of every step, in order.
      should_stop: asked after every step.
      evaluate: called with the state of every `evaluate_every` steps but the last, which it must not change, before
        that is saved; and once more with the state that training starts from if that is one of them.
      evaluate_every: steps between evaluations; 0 for none.

    Returns:
      The state after the last step, which is saved.

    Raises:
      Stopped: `should_stop` said so; the state is saved.
      Diverged: a loss was not finite.
      NoRoom: a device was sent more than `execution.expert_slack` allows for.
      CheckpointError: the newest checkpoint cannot be read.
    """
    hyper, batch_size, length = Hyper.of(spec), spec.budget.batch_size, spec.data.sequence_length
    state: Any = checkpoints.restore(program.like) or program.init(np.uint32(spec.seed))
    first = int(state.step)
    begin(first)
    is_evaluated = _multiples(evaluate_every, spec.budget.steps)
    if is_evaluated(first):  # the process that saved it may have died before it was
        evaluate(state)
    saved, pending, vote = time.monotonic(), None, Vote()
    for step in range(first, spec.budget.steps):
        batch: Any = program.place(partial(train_batch, tokens, spec.seed, step, batch_size, length))
        state, metrics = program.step(state, batch, hyper)
        # While this step runs, look at the one before.
        if pending is not None:
            _report(*pending, report)
        pending = step, metrics
        if is_evaluated(step + 1):
            _report(*pending, report)  # which finds out whether there is anything to evaluate
            pending = None
            evaluate(program.read(state))
        if step + 1 == spec.budget.steps:
            break
        due = time.monotonic() - saved > checkpoint_seconds
        wish = vote.greatest(STOP if should_stop() else SAVE if due else GO_ON)
        if wish > GO_ON:
            # Metrics come first, so that every step of a checkpoint has its line.
            if pending is not None:
                _report(*pending, report)
            pending = None
            checkpoints.save(program.read(state))
            saved = time.monotonic()
            if wish == STOP:
                raise Stopped(f"stopped after step {step}")
    state = program.read(state)
    if pending is not None:
        _report(*pending, report)
        checkpoints.save(state)
    return state


def _multiples(every: int, steps: int) -> Callable[[int], bool]:
    """Whether there is an evaluation after so many steps; that at the end is the worker's."""
    return lambda done: every > 0 and 0 < done < steps and done % every == 0


def _report(step: int, metrics: dict[str, jax.Array], report: Callable[[Metrics], None]) -> None:
    values: Metrics = {"step": step, **{name: value.item() for name, value in metrics.items()}}
    if values.get(LOST):
        raise NoRoom(
            f"at step {step}, {values[LOST]:,} assignments of tokens to experts found no room on the device of their "
            "expert. Nothing of that step was kept: with a greater execution.expert_slack `sweep retry` goes on from "
            "the last checkpoint."
        )
    report(values)
    if not math.isfinite(values["loss"]):
        raise Diverged(step)
