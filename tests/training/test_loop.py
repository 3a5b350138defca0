"""The loop: its metrics, its stops, and that a run which was interrupted is the run that was not."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from slicedice.data import train_batch
from slicedice.training import Checkpoints, Diverged, Stopped, TrainState, loop, train
from tests.training.damage import damage

STEPS = 6


class Session:
    """One process's worth of training in a folder, and what it reported."""

    def __init__(self, program, spec, tokens, folder: Path):
        self._arguments = program, spec, tokens
        self._folder = folder
        self.began: list[int] = []
        self.metrics: list[dict[str, Any]] = []
        self.evaluated: list[int] = []

    def train(
        self,
        *,
        stop_after: int | None = None,
        every: float = 1e9,
        report: Callable | None = None,
        evaluate: Callable | None = None,
        evaluate_every: int = 0,
        earlier: Sequence[tuple[Path, int]] = (),
        folder: Path | None = None,
    ) -> TrainState:
        checkpoints = Checkpoints(folder or self._folder, earlier)
        asked = iter(range(STEPS))
        try:
            return train(
                *self._arguments,
                checkpoints,
                checkpoint_seconds=every,
                begin=self.began.append,
                report=report or self.metrics.append,
                should_stop=lambda: next(asked) == stop_after,
                evaluate=evaluate or (lambda state: self.evaluated.append(int(state.step))),
                evaluate_every=evaluate_every,
            )
        finally:
            checkpoints.close()


@pytest.fixture
def session(program, run, tokens, tmp_path: Path) -> Callable[..., Session]:
    return lambda name="run", **overrides: Session(program(), run(overrides), tokens, tmp_path / name)


def _assert_same(got: Any, want: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_metrics_come_once_a_step_in_order(session, run):
    undisturbed = session()
    state = undisturbed.train()
    assert state.step == STEPS == run().budget.steps
    assert undisturbed.began == [0]
    assert [m["step"] for m in undisturbed.metrics] == list(range(STEPS))
    for metrics in undisturbed.metrics:
        assert all(type(value) in (int, float) and math.isfinite(value) for value in metrics.values())
    rates = [m["learning_rate"] for m in undisturbed.metrics]
    assert rates[0] < rates[1] == rates[2] > rates[3] > rates[4] > rates[5]
    assert len({m["loss"] for m in undisturbed.metrics}) == STEPS


@pytest.mark.parametrize("stop_after", [0, 3])
def test_a_stopped_run_resumes_to_the_bit(stop_after: int, session):
    want, stopped, resumed = session("a"), session("b"), session("b")
    final = want.train()
    with pytest.raises(Stopped):
        stopped.train(stop_after=stop_after)
    assert [m["step"] for m in stopped.metrics] == list(range(stop_after + 1)), (
        "every step of a checkpoint has its line"
    )
    got = resumed.train()
    assert resumed.began == [stop_after + 1]
    assert stopped.metrics + resumed.metrics == want.metrics
    _assert_same(got, final)


def test_asked_to_stop_after_its_last_step_it_is_done(session):
    last = session()
    assert last.train(stop_after=STEPS - 1).step == STEPS
    assert len(last.metrics) == STEPS


def test_a_crashed_run_goes_on_from_its_last_checkpoint(session):
    """A checkpoint after every step; a crash while step 4 is reported leaves that of step 3."""
    want, crashed, resumed = session("a"), session("b"), session("b")
    final = want.train()

    def crash(metrics):
        if metrics["step"] == 4:
            raise OSError("the disk is full")
        crashed.metrics.append(metrics)

    with pytest.raises(OSError, match="the disk is full"):
        crashed.train(every=0.0, report=crash)
    assert crashed.metrics == want.metrics[:4]
    got = resumed.train(every=0.0)
    assert resumed.began == [4]
    assert resumed.metrics == want.metrics[4:]
    _assert_same(got, final)


@pytest.mark.usefixtures("abandoned_reads")
@pytest.mark.parametrize("how", ["flipped", "removed"])
def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(how: str, session, tmp_path: Path):
    want, stopped, resumed = session("a"), session("b"), session("b")
    final = want.train()
    with pytest.raises(Stopped):
        stopped.train(every=0.0, stop_after=3)
    damage(tmp_path / "b" / "training" / "4", how)
    # As a new attempt goes on, in a folder of its own.
    got = resumed.train(earlier=[(tmp_path / "b", STEPS)], folder=tmp_path / "c")
    assert resumed.began == [3]
    assert stopped.metrics[:3] + resumed.metrics == want.metrics
    _assert_same(got, final)


@pytest.mark.parametrize(("every", "steps"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [2, 4]), (3, [3]), (6, []), (9, [])])
def test_evaluations_come_between_steps_and_change_nothing(every: int, steps: list[int], session, program):
    """Not after the last step: what is trained is evaluated by whoever asked for it."""
    want, watched = session("a"), session("b")
    final = want.train()
    kept = []

    def evaluate(state: TrainState) -> None:
        watched.evaluated.append(int(state.step))
        # Every metric of the steps so far is there; and what was evaluated before has not been changed meanwhile.
        assert [m["step"] for m in watched.metrics] == list(range(int(state.step)))
        kept.append(jax.tree.map(np.array, state.params))

    got = watched.train(evaluate=evaluate, evaluate_every=every)
    assert watched.evaluated == steps
    assert watched.metrics == want.metrics
    _assert_same(got, final)
    assert len({str(jax.tree.leaves(params)[0].sum()) for params in kept}) == len(steps)


def test_an_evaluation_comes_before_the_checkpoint_of_its_step(session):
    """So that no step is passed for good without it; whoever resumes there is asked again, and knows what it has."""
    stopped, resumed = session("a"), session("a")
    with pytest.raises(Stopped):
        stopped.train(stop_after=3, evaluate_every=2)
    assert stopped.evaluated == [2, 4]
    resumed.train(evaluate_every=2)
    assert resumed.began == [4]
    assert resumed.evaluated == [4]


def test_an_evaluation_that_dies_leaves_the_run_to_go_on(session):
    want, crashed, resumed = session("a"), session("b"), session("b")
    final = want.train()

    def crash(state: TrainState) -> None:
        if state.step == 4:
            raise OSError("no disk")

    with pytest.raises(OSError, match="no disk"):
        crashed.train(every=0.0, evaluate=crash, evaluate_every=2)
    _assert_same(resumed.train(every=0.0, evaluate_every=2), final)
    assert resumed.began == [3]
    assert resumed.evaluated == [4]


def test_what_diverged_is_not_evaluated(session):
    wild = session(**{"optimizer.learning_rate": 1e30})
    with pytest.raises(Diverged) as error:
        wild.train(evaluate_every=1)
    assert wild.evaluated == list(range(1, error.value.step + 1))


def test_seeds_see_other_batches_and_other_initial_values(session, monkeypatch):
    first, second, asked = session("a"), session("b", seed=1), []

    def recorded(store, *arguments):
        asked.append(arguments)
        return train_batch(store, *arguments)

    monkeypatch.setattr(loop, "train_batch", recorded)
    first.train()
    second.train()
    assert asked == [(seed, step, 8, 16, slice(0, 8, 1)) for seed in (0, 1) for step in range(STEPS)]
    monkeypatch.setattr(loop, "train_batch", lambda store, seed, *arguments: train_batch(store, 0, *arguments))
    third = session("c", seed=1)
    third.train()
    assert first.metrics[0]["loss"] != third.metrics[0]["loss"], "the same batch, the same initial values"


def test_a_run_that_diverges_says_at_which_step(session):
    wild = session(**{"optimizer.learning_rate": 1e30})
    with pytest.raises(Diverged) as error:
        wild.train()
    finite = [math.isfinite(m["loss"]) for m in wild.metrics]
    assert finite == [True] * error.value.step + [False]
    assert 0 < error.value.step < STEPS
    assert f"step {error.value.step}" in str(error.value)
