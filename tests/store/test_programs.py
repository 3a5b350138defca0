"""Programs whose first run fails wait, with their other runs, until somebody has looked."""

import json
from pathlib import Path
from typing import Any

import pytest

from slicedice import __version__, provenance
from slicedice.spec import Execution, RunSpec, program_key, run_id, run_name
from slicedice.store import Kind, RunState, Store
from slicedice.store import programs as programs_room
from slicedice.store.kinds import MOST_FRUITLESS
from slicedice.store.programs import Pause, Programs

Runs = dict[str, tuple[RunSpec, Execution]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").create()


@pytest.fixture
def runs(store: Store, tiny) -> Runs:
    """Three seeds of one program, and one run of another, which are made and not trained."""
    points = [tiny(fields) for fields in ({}, {"seed": 1}, {"seed": 2}, {"model.experts": "n=4 g=1/2"})]
    for spec, execution in points:
        store.run(spec).create(spec, execution)
    keys = [program_key(*point) for point in points]
    assert len(set(keys[:3])) == 1
    assert keys[0] != keys[3]
    return {run_id(spec): (spec, execution) for spec, execution in points}


def end(store: Store, run: str, kind: Kind, reason: str = "") -> None:
    """One attempt at a run, and what a worker notes of it."""
    claim = store.run(run).claim()
    assert claim is not None
    claim.finish(kind, {"steps": 6}) if kind.has_result else claim.fail(kind, reason)
    store.note_ending(run)


def kinds(store: Store, runs: Runs) -> list[Kind]:
    return [state.kind for state, _ in store.look(runs).values()]


@pytest.mark.parametrize("kind", [Kind.CRASHED, Kind.OUT_OF_MEMORY])
def test_a_first_run_that_fails_pauses_the_others_of_its_program(store: Store, runs: Runs, kind: Kind, caplog):
    first, second, third, other = runs
    end(store, first, kind, "because of x")
    assert kinds(store, runs) == [kind, Kind.PAUSED, Kind.PAUSED, Kind.MISSING]
    state = store.state(second, *runs[second])
    assert state == store.look(runs)[third][0]
    for word in (run_name(runs[first][0]), first, "because of x", "sweep retry"):
        assert word in state.reason
    assert not state.kind.is_open
    assert "wait until `sweep retry`" in caplog.text
    assert store.run(second).state() == RunState(Kind.MISSING), "its own folder says nothing of it"
    assert store.state(other, *runs[other]).kind is Kind.MISSING


@pytest.mark.parametrize("works", [Kind.DONE, Kind.DIVERGED])
def test_a_program_that_worked_is_not_paused(store: Store, runs: Runs, works: Kind, caplog):
    first, second, *_ = runs
    end(store, first, works)
    end(store, second, Kind.CRASHED, "because")
    assert kinds(store, runs) == [works, Kind.CRASHED, Kind.MISSING, Kind.MISSING]
    assert caplog.text == ""


def test_a_run_that_was_interrupted_until_it_crashed_pauses_no_other(store: Store, runs: Runs):
    first, *_ = runs
    for _ in range(MOST_FRUITLESS):
        end(store, first, Kind.PREEMPTED, "killed")
    assert kinds(store, runs) == [Kind.CRASHED, Kind.MISSING, Kind.MISSING, Kind.MISSING]


@pytest.mark.parametrize("kind", [Kind.PREEMPTED, Kind.CANCELLED])
def test_an_interruption_pauses_nothing_and_is_no_proof_that_it_works(store: Store, runs: Runs, kind: Kind):
    first, second, *_ = runs
    end(store, first, kind)
    assert store.state(second, *runs[second]).kind is Kind.MISSING
    end(store, second, Kind.CRASHED)
    assert kinds(store, runs)[:3] == [Kind.PAUSED, Kind.CRASHED, Kind.PAUSED]


def test_a_run_that_is_trained_or_over_is_not_paused(store: Store, runs: Runs):
    first, second, third, _ = runs
    training, finishing = store.run(second).claim(), store.run(third).claim()
    assert training is not None
    assert finishing is not None
    end(store, first, Kind.CRASHED)
    assert kinds(store, runs)[:3] == [Kind.CRASHED, Kind.RUNNING, Kind.RUNNING]
    finishing.finish(Kind.DONE, {"steps": 6})
    store.note_ending(third)
    assert kinds(store, runs)[:3] == [Kind.CRASHED, Kind.RUNNING, Kind.DONE]
    training.fail(Kind.PREEMPTED, "a signal")
    assert store.state(second, *runs[second]).kind is Kind.PAUSED


def test_who_is_forgiven_is_tried_with_the_others_of_its_program(store: Store, runs: Runs):
    first, second, *_ = runs
    end(store, first, Kind.CRASHED)
    store.forgive(second, *runs[second])
    assert kinds(store, runs) == [Kind.CRASHED, Kind.MISSING, Kind.MISSING, Kind.MISSING]
    store.forgive(first, *runs[first])
    assert kinds(store, runs) == [Kind.MISSING] * 4
    end(store, second, Kind.OUT_OF_MEMORY)
    assert kinds(store, runs) == [Kind.PAUSED, Kind.OUT_OF_MEMORY, Kind.PAUSED, Kind.MISSING], "paused anew"
    store.forgive(second, *runs[second])
    end(store, second, Kind.DONE)
    end(store, first, Kind.CRASHED)
    assert kinds(store, runs) == [Kind.CRASHED, Kind.DONE, Kind.MISSING, Kind.MISSING]


def test_the_first_word_on_a_program_stays_until_it_is_lifted(tmp_path: Path):
    programs = Programs(tmp_path / "programs")
    assert programs.paused() == {}
    programs.lift("key")
    assert programs.pause("key", "a", "run a", "x")
    assert not programs.pause("key", "b", "run b", "y")
    programs.note_works("key", "b")  # a pause is somebody's to lift, also where another run of it works
    assert programs.paused().keys() == {"key"}
    assert programs.paused()["key"].run == "a"
    programs.lift("key")
    assert programs.paused() == {}
    programs.note_works("key", "b")
    programs.lift("key")
    assert not programs.pause("key", "a", "run a", "x"), "what works is not forgotten"
    assert programs.pause("another", "a", "run a", "x")


def test_what_works_is_forgotten_with_the_code_it_worked_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A bug of later code is its first failure, and costs one run of a program as any other does."""
    programs = Programs(tmp_path / "programs")
    monkeypatch.setattr(programs_room, "code", lambda: "0.1.0-abc")
    programs.note_works("key", "a")
    assert not programs.pause("key", "b", "run b", "x")
    monkeypatch.setattr(programs_room, "code", lambda: "0.1.0-def+changes")
    assert programs.pause("key", "b", "run b", "y")
    assert programs.paused().keys() == {"key"}
    programs.lift("key")
    programs.note_works("key", "b")
    assert not programs.pause("key", "c", "run c", "z")
    monkeypatch.setattr(programs_room, "code", lambda: "0.1.0-abc")
    assert not programs.pause("key", "c", "run c", "z"), "workers of both may be about"
    assert programs.paused() == {}


def test_what_was_noted_of_the_code_is_its_version_and_commit(monkeypatch: pytest.MonkeyPatch):
    for revision, told in ((None, __version__), ("12ab+changes", f"{__version__}-12ab+changes")):
        provenance.code.cache_clear()
        monkeypatch.setattr(provenance, "git_revision", lambda revision=revision: revision)
        assert provenance.code() == told
    provenance.code.cache_clear()


@pytest.mark.parametrize("content", ["", "{", "[]", "5", '{"works": 1}', "{}"])
def test_a_damaged_word_pauses_nothing(tmp_path: Path, content: str):
    (tmp_path / "key.json").write_text(content)
    (tmp_path / ".key.json.77-0123abcd").write_text('{"paused": "a", "reason": "half-written"}')
    assert Programs(tmp_path).paused() == {}


@pytest.mark.parametrize("value", [None, 5, ["a"], {}])
def test_what_it_says_is_text(tmp_path: Path, value: Any):
    (tmp_path / "key.json").write_text(json.dumps({"paused": value, "reason": value}))
    assert Programs(tmp_path).paused() == {"key": Pause(str(value), str(value))}
