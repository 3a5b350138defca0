"""What a worker trains at once: each run has its own claim, log, metrics, result and end, as if it were alone."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from slicedice import training, work
from slicedice.data import prepare
from slicedice.spec import run_name
from slicedice.store import Kind, RunFolder, Store, metrics
from slicedice.training import Lane, Lanes
from slicedice.worker import Worker
from tests.evaluation.files import write_lines

FIELDS = {"model.experts": "n=4 g=1/2", "model.layers": 1, "execution.evaluate_every": 2}
SEEDS = [{"seed": seed} for seed in range(3)]

Room = tuple[Store, list[str]]


@pytest.fixture(scope="module")
def room(tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Room]:
    """A new store with runs that differ as is said, and their ids."""
    texts = tmp_path_factory.mktemp("texts")
    draw = np.random.default_rng(0)
    write_lines(texts / "all.jsonl", [{"text": "".join(draw.choice(list("abcd "), 60)) + "x"} for _ in range(8)])

    def made(*changes: dict[str, Any], lanes: int) -> Room:
        store, ids = Store(tmp_path_factory.mktemp("room") / "store").create(), []
        for change in changes:
            spec, execution = tiny({**FIELDS, "data.source": str(texts), "execution.lanes": lanes, **change})
            prepare(spec.data.source, spec.data.tokenizer, store.data, spec.data.heldout_fraction)
            store.run(spec).create(spec, execution)
            ids.append(store.run(spec).path.name)
        return store, ids

    return made


@pytest.fixture(scope="module")
def alone(room) -> Store:
    """The runs of `SEEDS`, each trained for itself."""
    store, ids = room(*SEEDS, lanes=1)
    assert [kind for _, kind in Worker(store).train_all(ids)] == [Kind.DONE] * 3
    assert [(store.run(id_).result() or {})["lanes"] for id_ in ids] == [1] * 3
    return store


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs were trained at once, time after time; room for them is asserted to be as much at each."""
    seen, widths, train = [], set(), Lanes.train

    def watched(self: Lanes, works: Any) -> Any:
        seen.append(len(works))
        widths.add(self.width)
        assert len(widths) == 1
        return train(self, works)

    monkeypatch.setattr(Lanes, "train", watched)
    return seen


def assert_same(got: RunFolder, want: RunFolder) -> None:
    """Metrics, evaluations and result, but for the order of sums."""
    for name in ("metrics", "evaluation_lines"):
        told = [list(metrics.read(getattr(folder.attempts()[0], name))) for folder in (got, want)]
        assert len(told[0]) == len(told[1]) > 0
        for a, b in zip(*told, strict=True):
            assert a.pop("name", "") == b.pop("name", "")
            a, b = (line.pop("scores", {"held_out": {"macro": {}}})["held_out"]["macro"] | line for line in (a, b))
            assert a == pytest.approx(b, rel=1e-3, abs=1e-6)
    a, b = ((folder.result() or {})["evaluation"]["held_out"]["macro"] for folder in (got, want))
    assert a == pytest.approx(b, rel=1e-3)


def test_runs_of_a_program_are_trained_at_once_and_are_what_they_are_alone(
    room, alone: Store, rounds, capsys, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    other = {"model.experts": "dense"}
    store, ids = room(SEEDS[0], other, *SEEDS[1:], lanes=3)
    assert work.main(["--store", str(store.root), *ids]) == 0
    dense = ids.pop(1)
    assert capsys.readouterr().out.splitlines() == [f"{id_} done" for id_ in (*ids, dense)]
    assert rounds == [3]
    for id_ in ids:
        assert_same(store.run(id_), alone.run(id_))
        assert (store.run(id_).result() or {})["lanes"] == 3
        # Each logs what it has to say itself, and nothing of what the others say.
        told = store.run(id_).log_of(0).read_text()
        assert [run_name(store.read_spec(other)) in told for other in ids] == [other == id_ for other in ids]
    assert (store.run(dense).result() or {})["lanes"] == 1


def test_rounds_are_of_one_size_and_those_of_a_seed_go_together(room, rounds):
    """Five are three and two, not four and one: each size is compiled for itself."""
    rates = [{"seed": seed, "optimizer.learning_rate": rate} for rate in (1e-3, 2e-3) for seed in range(2)]
    store, ids = room(*rates, {"seed": 2}, lanes=4)
    done = list(Worker(store).train_all(ids))
    assert rounds == [3, 2]
    assert [store.read_spec(id_).seed for id_, _ in done] == [0, 0, 1, 1, 2]
    assert {kind for _, kind in done} == {Kind.DONE}


def test_all_are_saved_when_the_worker_is_told_to_stop_and_gone_on_from(room, alone: Store, monkeypatch):
    store, ids = room(*SEEDS, lanes=3)
    worker, step = Worker(store), Lanes.step

    def stopping(self: Lanes, batches: Any, hypers: Any) -> Any:
        monkeypatch.setattr(Lanes, "step", step)
        worker.stop()
        return step(self, batches, hypers)

    monkeypatch.setattr(Lanes, "step", stopping)
    assert [kind for _, kind in worker.train_all(ids)] == [Kind.PREEMPTED] * 3
    assert [store.run(id_).attempts()[0].steps for id_ in ids] == [1, 1, 1]
    assert [kind for _, kind in Worker(store).train_all(ids)] == [Kind.DONE] * 3
    for id_ in ids:
        assert store.run(id_).attempts()[0].number == 2
        assert_same(store.run(id_), alone.run(id_))


def test_a_worker_that_is_told_to_stop_tells_of_all_that_it_saved(room, monkeypatch, capsys):
    """And begins with nothing else."""
    store, ids = room(*SEEDS, {"seed": 3}, {"seed": 4}, lanes=3)
    worker, step = Worker(store), Lanes.step

    def stopping(self: Lanes, batches: Any, hypers: Any) -> Any:
        worker.stop()
        return step(self, batches, hypers)

    monkeypatch.setattr(Lanes, "step", stopping)
    monkeypatch.setattr(work, "Worker", lambda *_: worker)
    monkeypatch.setattr(work.signal, "signal", lambda *_: None)
    assert work.main(["--store", str(store.root), *ids]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{id_} preempted" for id_ in ids[:3]]
    assert [store.run(id_).attempts() for id_ in ids[3:]] == [[], []]


def test_one_that_is_cancelled_ends_and_one_that_another_holds_is_passed_over(room, alone: Store, monkeypatch, rounds):
    store, ids = room(*SEEDS, lanes=3)
    step, taken = Lanes.step, []

    def cancelling(self: Lanes, batches: Any, hypers: Any) -> Any:
        taken.append(len(batches))
        if len(taken) == 2:
            store.run(ids[0]).cancel()
        return step(self, batches, hypers)

    train = training.train

    def beating(program: Any, *arguments: Any, report: Any, should_stop: Any, **settings: Any) -> Any:
        claim = should_stop.args[0]

        def reported(values: Any) -> None:
            report(values)
            claim.beat()

        return train(program, *arguments, report=reported, should_stop=should_stop, **settings)

    monkeypatch.setattr(Lanes, "step", cancelling)
    monkeypatch.setattr(training, "train", beating)
    with store.run(ids[1]).claim() or pytest.fail("nobody else has it"):
        kinds = dict(Worker(store).train_all(ids))
    assert kinds == {ids[0]: Kind.CANCELLED, ids[1]: None, ids[2]: Kind.DONE}
    assert_same(store.run(ids[2]), alone.run(ids[2]))
    assert rounds == [2]
    assert (store.run(ids[2]).result() or {})["lanes"] == 1  # in most steps


def test_out_of_memory_beside_others_is_tried_alone_and_later_rounds_are_narrower(room, alone: Store, monkeypatch):
    store, ids = room(*SEEDS, *({"seed": seed} for seed in range(3, 5)), lanes=3)

    widths = []

    def no_room(self: Lanes, *_: Any) -> Any:
        widths.append(self.width)
        raise RuntimeError("RESOURCE_EXHAUSTED: for three")

    monkeypatch.setattr(Lanes, "step", no_room)
    assert [kind for _, kind in Worker(store).train_all(ids)] == [Kind.DONE] * 5
    assert widths == [3]  # and then one by one
    for id_ in ids[:3]:
        assert_same(store.run(id_), alone.run(id_))
        assert (store.run(id_).result() or {})["lanes"] == 1
        assert (store.run(id_).result() or {})["execution"]["micro_batch"] == 8
        assert "again alone" in store.run(id_).log_of(0).read_text()


def test_a_run_whose_folder_is_gone_leaves_the_others(room, rounds, capsys):
    store, ids = room(*SEEDS, lanes=3)
    (store.run(ids[0]).path / "spec.json").write_text("{")
    assert work.main(["--store", str(store.root), *ids]) == 1
    assert capsys.readouterr().out.splitlines() == [f"{ids[0]} passed_over", f"{ids[1]} done", f"{ids[2]} done"]
    assert rounds == [2]


@pytest.mark.long
def test_how_many_is_asked_of_a_measurement_where_it_is_not_said(room, rounds, monkeypatch):
    store, ids = room(*SEEDS, lanes=0)
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    asked = []

    def two(program: training.Program, seeds: Sequence[int]) -> Lanes:
        asked.append(seeds)
        return Lanes(program, 2)

    monkeypatch.setattr(training.packing, "lanes_that_pay", two)
    assert {kind for _, kind in Worker(store).train_all(ids)} == {Kind.DONE}
    assert (asked, rounds) == ([[0, 1, 2]], [2])


def test_a_fault_of_one_lane_ends_the_worker_when_the_others_are_done(room, monkeypatch):
    """As a full disk does."""
    store, ids = room(*SEEDS, lanes=3)
    train = training.train

    def faulty(program: Lane, spec: Any, *arguments: Any, **settings: Any) -> Any:
        if spec.seed == 0:
            raise OSError(28, "No space left on device")
        return train(program, spec, *arguments, **settings)

    monkeypatch.setattr(training, "train", faulty)
    assert work.main(["--store", str(store.root), *ids]) == work.DISK_FULL
    assert [store.run(id_).state().kind for id_ in ids] == [Kind.PREEMPTED, Kind.DONE, Kind.DONE]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("RESOURCE_EXHAUSTED: for one"), Kind.OUT_OF_MEMORY),
        (ValueError("no such kernel"), Kind.CRASHED),
    ],
)
def test_what_fails_while_lanes_are_measured_is_the_first_runs_own(error: Exception, kind: Kind, room, monkeypatch):
    """And not the end of the worker, with which a sweep would end before it has begun."""
    store, ids = room(*SEEDS, lanes=0)
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")

    def fails(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(training.Program, "compile", fails)
    (first, *others) = Worker(store).train_all(ids)
    assert first == (ids[0], kind)
    assert str(error) in store.run(ids[0]).state().reason
    assert others == [(id_, None) for id_ in ids[1:]]  # which wait for `retry`: the program failed


def test_a_full_disk_while_lanes_are_measured_ends_the_worker(room, monkeypatch):
    store, ids = room(*SEEDS, lanes=0)
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")

    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training.packing, "lanes_that_pay", full)
    assert work.main(["--store", str(store.root), *ids]) == work.DISK_FULL
    assert [store.run(id_).state().kind for id_ in ids] == [Kind.MISSING] * 3


def test_lanes_that_cannot_be_compiled_are_tried_once(room, monkeypatch):
    store, ids = room(*SEEDS, lanes=0)
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    tried = []

    def fails(*_: Any) -> Any:
        tried.append(True)
        raise ValueError("no rule for this kernel")

    monkeypatch.setattr(training.packing, "lanes_that_pay", fails)
    assert [kind for _, kind in Worker(store).train_all(ids)] == [Kind.DONE] * 3
    assert len(tried) == 1
