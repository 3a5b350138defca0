"""Runs trained as lanes are the runs that they would be alone, whatever becomes of those beside them."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from slicedice import cache
from slicedice.spec import RunSpec, program_key
from slicedice.training import Checkpoints, Diverged, Lane, Lanes, Stopped, TrainState, train

STEPS = 6
RUNS = (
    {"seed": 1},
    {"seed": 2, "optimizer.learning_rate": 3e-3},
    {"seed": 3, "router.alpha": 0.0, "router.gamma": 0.1, "optimizer.weight_decay": 0.0},
)

Trained = tuple[TrainState, list[dict[str, Any]]]


class Training:
    """Trains specs of the shared program, each in a folder of its own."""

    def __init__(self, program, tokens, folder: Path):
        self.program, self.tokens, self.folder = program, tokens, folder

    def one(
        self,
        program: Any,
        spec: RunSpec,
        name: str = "",
        stop_after: int | None = None,
        evaluate: Callable[[TrainState], None] = lambda state: None,
    ) -> Trained:
        """Trains one, by a program or a lane; its last state, and the metrics of every step."""
        reported: list[dict[str, Any]] = []
        checkpoints = Checkpoints(self.folder / (name or f"alone {spec.seed}"))
        try:
            state = train(
                program,
                spec,
                self.tokens,
                checkpoints,
                checkpoint_seconds=1e9,
                begin=lambda step: None,
                report=reported.append,
                should_stop=lambda: stop_after is not None and len(reported) >= stop_after,
                evaluate=evaluate,
                evaluate_every=2,
            )
        finally:
            checkpoints.close()
        return state, reported

    def alone(self, spec: RunSpec) -> Trained:
        return self.one(self.program, spec)

    def together(self, *works: Callable[[Lane], Any], width: int = 0) -> list[Any]:
        return Lanes(self.program, width or len(works)).train(works)

    def lane(self, spec: RunSpec, **settings: Any) -> Callable[[Lane], Trained]:
        settings.setdefault("name", f"lane {spec.seed}")
        return lambda lane: self.one(lane, spec, **settings)


@pytest.fixture
def training(program, tokens, tmp_path: Path) -> Training:
    return Training(program(), tokens, tmp_path)


def assert_same(got: Trained, want: Trained) -> None:
    """But for the order of sums, which AdamW's first steps make the most of: they move by signs of gradients."""
    (state, metrics), (wanted, wanted_metrics) = got, want
    assert [m["step"] for m in metrics] == [m["step"] for m in wanted_metrics]
    for a, b in zip(metrics, wanted_metrics, strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())


def test_each_is_the_run_it_would_be_alone(training: Training, run):
    specs = [run(overrides) for overrides in RUNS]
    for got, spec in zip(training.together(*map(training.lane, specs)), specs, strict=True):
        assert_same(got, training.alone(spec))


def test_room_that_no_run_takes_changes_nothing(training: Training, run):
    spec = run(RUNS[0])
    (got,) = training.together(training.lane(spec), width=3)
    assert_same(got, training.alone(spec))


def test_one_that_diverges_or_fails_leaves_the_others_as_they_are(training: Training, run):
    def fails(state: TrainState) -> None:
        raise OSError("the disk is full")

    def diverges(lane: Lane) -> int:
        with pytest.raises(Diverged) as diverged:
            training.one(lane, run({"seed": 5, "optimizer.learning_rate": 1e30}), "diverging")
        return diverged.value.step

    def caught(lane: Lane) -> str:
        with pytest.raises(OSError, match="full"):
            training.one(lane, run({"seed": 6}), "failing", evaluate=fails)
        return "failed"

    spec = run(RUNS[1])
    step, got, failed = training.together(diverges, training.lane(spec), caught)
    assert 0 < step < STEPS
    assert failed == "failed"
    assert_same(got, training.alone(spec))


def test_one_that_was_stopped_goes_on_beside_others_at_other_steps(training: Training, run):
    first, second = run(RUNS[0]), run(RUNS[1])

    def stops(lane: Lane) -> None:
        with pytest.raises(Stopped):
            training.one(lane, first, "stopped", stop_after=3)

    _, other = training.together(stops, training.lane(second))
    assert_same(other, training.alone(second))
    (state, metrics), beside = training.together(training.lane(first, name="stopped"), training.lane(run(RUNS[2])))
    assert metrics[0]["step"] > 0
    whole = training.alone(first)
    assert_same((state, metrics), (whole[0], whole[1][metrics[0]["step"] :]))
    assert_same(beside, training.alone(run(RUNS[2])))


def test_states_that_are_evaluated_are_the_lanes_own(training: Training, run):
    specs, seen = [run(overrides) for overrides in RUNS[:2]], {}

    def evaluate(seed: int, state: TrainState) -> None:
        seen[seed, int(state.step)] = jax.tree.map(np.asarray, state)

    training.together(*(training.lane(spec, evaluate=partial(evaluate, spec.seed)) for spec in specs))
    of_lanes, seen = seen, {}
    for spec in specs:
        training.one(training.program, spec, evaluate=partial(evaluate, spec.seed))
    assert of_lanes.keys() == seen.keys() == {(seed, step) for seed in (1, 2) for step in (2, 4)}
    for key, state in seen.items():
        assert_same((of_lanes[key], []), (state, []))


@pytest.mark.parametrize(("seeds", "shared"), [((7, 7), True), ((7, 8), False)])
def test_one_batch_serves_all_that_read_the_same(
    seeds: tuple[int, int], shared: bool, training: Training, run, monkeypatch
):
    rates = 1e-3, 2e-3
    specs = [run({"seed": seed, "optimizer.learning_rate": rate}) for seed, rate in zip(seeds, rates, strict=True)]
    lanes, shapes = Lanes(training.program, 2), []

    def watched(step: Any, state: Any, batch: np.ndarray, hyper: Any) -> Any:
        shapes.append(batch.shape)
        return step(state, batch, hyper)

    compiled = lanes.compile
    monkeypatch.setattr(lanes, "compile", lambda shared: partial(watched, compiled(shared)))
    got = lanes.train([training.lane(spec, name=str(i)) for i, spec in enumerate(specs)])
    assert set(shapes) == {(8, 17) if shared else (2, 8, 17)}
    for trained, spec, alone in zip(got, specs, "ab", strict=True):
        assert_same(trained, training.one(training.program, spec, alone))


def test_what_a_step_raises_every_lane_is_told(training: Training, run, monkeypatch: pytest.MonkeyPatch):
    """As when the device has no room for it; each may then go on in another way."""
    lanes = Lanes(training.program, 2)

    def no_room(*_: Any) -> Any:
        raise RuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setattr(lanes, "compile", lambda shared: no_room)

    def goes_on_alone(spec: RunSpec, lane: Lane) -> Trained:
        with pytest.raises(RuntimeError, match="EXHAUSTED"):
            training.one(lane, spec, f"lane {spec.seed}")
        return training.alone(spec)

    specs = [run(overrides) for overrides in RUNS[:2]]
    got = lanes.train([partial(goes_on_alone, spec) for spec in specs])
    assert [len(metrics) for _, metrics in got] == [STEPS, STEPS]


def test_what_a_lane_lets_out_comes_once_the_others_have_ended(training: Training, run):
    ended = []

    def lets_out(lane: Lane) -> None:
        raise KeyError("a fault")

    def ends(lane: Lane) -> None:
        training.one(lane, run(RUNS[0]), "other")
        ended.append(True)

    with pytest.raises(KeyError, match="a fault"):
        training.together(lets_out, ends)
    assert ended == [True]


def is_gone(state: TrainState) -> bool:
    return all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


@pytest.fixture
def made(training: Training, monkeypatch: pytest.MonkeyPatch) -> list[TrainState]:
    """The initial states that are made, of which none may still be there when the next one is."""
    states, init = [], training.program.init

    def watched(seed: Any) -> TrainState:
        assert all(map(is_gone, states))
        states.append(init(seed))
        return states[-1]

    monkeypatch.setattr(training.program, "init", watched)
    return states


def test_a_lane_gives_its_state_away_before_the_next_one_makes_its_own(training: Training, run, made):
    training.together(*(training.lane(run(overrides)) for overrides in RUNS))
    assert len(made) == 3


def test_when_there_is_no_room_for_a_state_all_others_are_given_back(training: Training, run, made, monkeypatch):
    """So that each has the memory to itself, once all have left."""
    lanes, put = Lanes(training.program, 3), Lanes.put

    def no_room(self: Lanes, lane: int, state: TrainState) -> None:
        if lane == 1:
            raise RuntimeError("RESOURCE_EXHAUSTED")
        put(self, lane, state)

    monkeypatch.setattr(Lanes, "put", no_room)
    at_once = []

    def goes_on_alone(spec: RunSpec, lane: Lane) -> Trained:
        with pytest.raises(RuntimeError, match="EXHAUSTED"):
            training.one(lane, spec, f"lane {spec.seed}")
        at_once.append(spec.seed)
        lane.leave()
        assert len(at_once) == 3
        assert all(map(is_gone, made[:3]))
        assert lanes._state is None
        return training.alone(spec)

    got = lanes.train([partial(goes_on_alone, run(overrides)) for overrides in RUNS])
    assert [len(metrics) for _, metrics in got] == [STEPS] * 3
    assert lanes.ran_out


def test_one_that_leaves_has_the_others_go_on_and_is_alone_when_they_have_ended(training: Training, run):
    order = []

    def no_room(state: TrainState) -> None:
        raise RuntimeError("RESOURCE_EXHAUSTED")

    def leaves(lane: Lane) -> None:
        with pytest.raises(RuntimeError, match="EXHAUSTED"):
            training.one(lane, run({"seed": 5}), "leaving", evaluate=no_room)
        order.append("leaves")
        lane.leave()
        order.append("is alone")

    def ends(lane: Lane) -> Trained:
        trained = training.one(lane, run(RUNS[1]), "other")
        order.append("ends")
        return trained

    _, got = training.together(leaves, ends)
    assert order == ["leaves", "ends", "is alone"]
    assert_same(got, training.alone(run(RUNS[1])))


def test_processes_compile_one_after_the_other(training: Training, monkeypatch: pytest.MonkeyPatch):
    """As the step of one run is, under the lock of the same program: the next one finds it in the cache."""
    held, compiled = [], []

    @contextlib.contextmanager
    def alone(path: Path) -> Iterator[None]:
        held.append(path.name)
        yield
        held.append("released")

    class Step:
        """Whose compilation takes no time."""

        def lower(self, *_: Any) -> "Step":
            return self

        def compile(self) -> None:
            compiled.append([*held])

    monkeypatch.setattr(cache, "alone", alone)
    lanes = Lanes(training.program, 2)
    monkeypatch.setitem(lanes._step_of, True, Step())
    lanes.compile(shared=True)
    assert compiled == [[program_key(training.program.spec, training.program.execution)]]


def test_a_lane_counts_those_that_take_steps_with_it(training: Training, run):
    """Not those that were passed over, or that end soon."""

    def stops(lane: Lane) -> int:
        with pytest.raises(Stopped):
            training.one(lane, run(RUNS[0]), "stopping", stop_after=1)
        return lane.width

    def goes_on(seed: int, lane: Lane) -> int:
        training.one(lane, run({"seed": seed}), f"going on {seed}")
        return lane.width

    works = [lambda lane: lane.width, stops, partial(goes_on, 5), partial(goes_on, 6)]
    assert training.together(*works) == [1, 3, 2, 2]
