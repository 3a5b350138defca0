"""The loop: its metrics, its stops, and that a run which was interrupted is the run that was not."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from slicedice.data import train_batch
from slicedice.training import CheckpointError, Checkpoints, Diverged, Hyper, Stopped, TrainState, loop, train
from tests.training.damage import DAMAGES, damage

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
    ) -> TrainState:
        checkpoints = Checkpoints(self._folder)
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


def _restored(checkpoints: Checkpoints, like: TrainState) -> TrainState:
    state = checkpoints.restore(like)
    assert state is not None
    return state


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


@pytest.fixture
def saved(program, start, tmp_path: Path) -> tuple[TrainState, Path]:
    """A state after step 3, its fields all different from a fresh one's, and the folder that it is saved in."""
    state = jax.tree.map(lambda x: x + jnp.ones((), x.dtype), start)._replace(step=jnp.int32(3))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state)
    checkpoints.close()
    return state, tmp_path


def test_a_checkpoint_holds_everything(saved, program):
    state, folder = saved
    fresh = program().init(jnp.uint32(0))
    assert Checkpoints(folder / "elsewhere").restore(fresh) is None
    got = Checkpoints(folder).restore(fresh)
    assert jax.tree.structure(got) == jax.tree.structure(state)
    _assert_same(got, state)


def test_a_restored_state_runs_in_the_program_as_it_is_compiled(saved, program, run, batch):
    """To XLA it is the same argument as a fresh one, or every run would compile twice beside a resumed one."""
    hyper, (state, folder) = Hyper.of(run()), saved
    fresh = program().init(jnp.uint32(0))
    restored = Checkpoints(folder).restore(state)
    program().step(fresh, batch, hyper)
    compiled = program().step._cache_size()
    program().step(restored, batch, hyper)
    assert program().step._cache_size() == compiled == 1


def test_the_newest_checkpoint_alone_is_kept(saved):
    state, folder = saved
    checkpoints = Checkpoints(folder)
    checkpoints.save(state._replace(step=jnp.int32(5)))
    assert [path.name for path in (folder / "training").iterdir()] == ["5"]
    assert _restored(checkpoints, state).step == 5


def test_half_a_checkpoint_is_none(saved):
    state, folder = saved
    (folder / "training" / "7.orbax-checkpoint-tmp").mkdir()
    (folder / "training" / "7.orbax-checkpoint-tmp" / "default").mkdir()
    assert _restored(Checkpoints(folder), state).step == 3


@pytest.mark.usefixtures("abandoned_reads")
@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint(how: str, saved):
    state, folder = saved
    damage(folder / "training" / "3", how)
    with pytest.raises(CheckpointError, match=f"step 3 in {folder / 'training'} cannot be read.*--retry"):
        Checkpoints(folder).restore(state)


@pytest.mark.usefixtures("abandoned_reads")
def test_a_checkpoint_of_another_model(saved):
    state, folder = saved
    narrower = jax.tree.map(lambda x: x[..., :2] if x.ndim > 1 else x, state)
    with pytest.raises(CheckpointError, match=r"is of another model: of .* it has"):
        Checkpoints(folder).restore(narrower)
    with pytest.raises(CheckpointError, match=r"is of another model: of .* it has"):
        Checkpoints(folder).restore(state._replace(bias=state.params))


def test_a_finished_run_leaves_its_model_alone(saved):
    """Parameters and biases by their paths, and no training state."""
    state, folder = saved
    checkpoints = Checkpoints(folder)
    checkpoints.save_model(state)
    checkpoints.drop_training_state()
    checkpoints.close()
    assert Checkpoints(folder).restore(state) is None
    with ocp.StandardCheckpointer() as reader:
        leaves = reader.restore(folder / "model")
    params, bias = (jax.tree.leaves_with_path(tree) for tree in (state.params, state.bias))
    want = {
        f"{i}.{jax.tree_util.keystr(path, simple=True, separator='.')}": leaf
        for i, tree in enumerate((params, bias))
        for path, leaf in tree
    }
    assert leaves.keys() == want.keys()
    _assert_same(leaves, want)
