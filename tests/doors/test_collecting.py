"""The verb gc: what it removes is needed by no run, whoever else is at work and whatever their clocks say."""

import json
import os
import sys
from pathlib import Path

import pytest

from slicedice.spec import SCHEMA
from slicedice.store import Kind, RunFolder, Store, attempt
from tests import endings
from tests.store.agents import contents
from tests.store.clocks import Clock

ELSEWHERE = {"host": "elsewhere", "machine": "another-boot", "pid": 1, "started": 5}


def collect(desk, *arguments: str):
    return desk.sweep("gc", *arguments, grid="", scale="")


@pytest.fixture
def store(desk) -> Store:
    """Of three runs, all done."""
    desk.sweep()
    return Store(desk.folder / "runs")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(attempt, "time", clock)
    return clock


def fill(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "x").write_text("weights")
    return folder / "x"


def half_written(path: Path, hours: float) -> Path:
    """A temporary file of so many hours ago."""
    path.write_text("half")
    then = path.stat().st_mtime - 3600 * hours
    os.utime(path, (then, then))
    return path


def leave_unfinished(folder: RunFolder) -> tuple[list[Path], list[Path]]:
    """Has a run been preempted after three checkpoints; returns what is needed, and what is not."""
    (folder.path / "result.json").unlink()
    saved = []
    for number in (2, 3, 4):
        endings.fail(folder, Kind.PREEMPTED, "because")
        saved.append(fill(folder.attempts()[0].checkpoints / "training" / str(number)))
    return saved[1:], saved[:1]


def begun_elsewhere(folder: RunFolder, number: int, at: float) -> Path:
    """An attempt of a process on another machine; returns where its signs of life are."""
    path = folder.path / "attempts" / str(number)
    path.mkdir(parents=True)
    (path / "claim.json").write_text(json.dumps({"holder": ELSEWHERE, "count": 0, "at": at}))
    return path / "beat.json"


def test_gc_removes_what_no_run_needs_and_only_when_told(desk, store: Store, monkeypatch: pytest.MonkeyPatch):
    done, left = (store.run(id_) for id_ in store.ids()[:2])
    model, training = (fill(done.attempt().checkpoints / name) for name in ("model", "training/5"))
    needed, needless = leave_unfinished(left)
    needless += [training, half_written(left.path / ".result.json.123-0123abcd", 2)]
    before = contents(store.root)
    asked = collect(desk)
    assert asked.status == 1
    assert "3 places" in asked.out
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: "n")
    assert collect(desk).status == 1
    assert contents(store.root) == before
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert collect(desk).status == 0
    gone = {str(path.relative_to(store.root)) for path in needless}
    assert contents(store.root) == {name: content for name, content in before.items() if name not in gone}
    assert all(path.exists() for path in (model, *needed))
    assert "0 places" in collect(desk, "--yes").out


@pytest.mark.parametrize("winner", [1, 2, 3])
@pytest.mark.parametrize("kind", [Kind.DONE, Kind.DIVERGED])
def test_gc_touches_nothing_of_a_finished_result(desk, store: Store, kind: Kind, winner: int):
    """Whichever of its attempts has it, and though a later one came as far."""
    folder = store.run(store.ids()[0])
    (folder.path / "result.json").unlink()
    for number in (2, 3):
        endings.fail(folder, Kind.PREEMPTED, "because")
        assert folder.attempts()[0].number == number
    for one in folder.attempts():
        one.metrics.write_text("".join(f'{{"step": {step}, "by": {one.number}}}\n' for step in range(6)))
        one.evaluation_lines.write_text(f'{{"step": 6, "name": "held_out", "scores": {{"by": {one.number}}}}}\n')
        for name in ("model", "training/5"):
            fill(one.checkpoints / name)
    result = {"schema": SCHEMA, "kind": kind, "attempt": winner, "steps": 6}
    (folder.path / "result.json").write_text(json.dumps(result))
    folder.write_evaluation("paloma", {"value": 1})
    folder.log_of(0).write_text("a line\n")
    before, looked = contents(store.root), (folder.look(), folder.evaluations())
    assert looked[0][1]
    assert collect(desk, "--yes").status == 0
    attempts = f"runs/{folder.path.name}/attempts/"
    mine = f"{attempts}{winner}/"
    kept = {
        name: content
        for name, content in before.items()
        if not name.startswith(attempts) or (name.startswith(mine) and "/training/" not in name)
    }
    assert contents(store.root) == kept
    assert f"{mine}checkpoints/model/x" in kept
    assert (folder.look(), folder.evaluations()) == looked


@pytest.mark.parametrize("link", ["attempts", "checkpoints", "training"])
def test_gc_follows_no_link_out_of_the_store(desk, store: Store, tmp_path: Path, link: str):
    folder = store.run(store.ids()[0])
    endings.finish(folder, Kind.DONE, {"steps": 5})
    checkpoint = fill(folder.attempt().checkpoints / "training" / "4")
    there = next(path for path in (checkpoint, *checkpoint.parents) if path.name == link)
    victim = tmp_path / "victim"
    there.rename(victim)
    there.symlink_to(victim)
    before = contents(victim)
    assert before
    assert "leads out of the store" in collect(desk, "--yes").out
    assert contents(victim) == before


def test_gc_leaves_what_somebody_trains(desk, store: Store):
    folder = store.run(store.ids()[1])
    _, needless = leave_unfinished(folder)
    claim = folder.claim()
    assert claim
    with claim:
        assert "0 places" in collect(desk, "--yes").out
    assert "1 places" in collect(desk, "--yes").out
    assert not needless[0].exists()


@pytest.mark.parametrize("done", [False, True])
@pytest.mark.parametrize("ahead", [-1e8, -120.0, 0.0, 120.0, 1e8])
def test_gc_believes_signs_of_life_and_no_clock(desk, store: Store, clock: Clock, ahead: float, done: bool):
    """Who trains on another machine, whose clock is off, is as alive as anybody."""
    folder = store.run(store.ids()[1])
    if done:
        needless = [fill(folder.attempt().checkpoints / "training" / "5")]
    else:
        _, needless = leave_unfinished(folder)
    beat, began = begun_elsewhere(folder, 5, clock.now + ahead), clock.now

    def meanwhile() -> None:
        beat.write_text(json.dumps({"count": int(clock.now - began) // 10, "at": clock.now + ahead}))

    clock.meanwhile = meanwhile
    assert "0 places" in collect(desk, "--yes").out
    assert needless[0].exists()
    clock.meanwhile = lambda: None
    clock.sleep(2e8 if ahead > 1e7 else 300)
    silent_since = clock.now
    assert f"{2 if done else 1} places" in collect(desk, "--yes").out
    assert not needless[0].exists()
    assert clock.now - silent_since > attempt.SILENCE_SECONDS


def test_gc_waits_once_for_all_and_not_at_all_without_need(desk, store: Store, clock: Clock):
    for id_ in store.ids():
        begun_elsewhere(store.run(id_), 2, clock.now - 300)
    began = clock.now
    assert "3 places" in collect(desk, "--yes").out
    assert attempt.SILENCE_SECONDS < clock.now - began < attempt.SILENCE_SECONDS + 2
    began = clock.now
    assert "0 places" in collect(desk, "--yes").out
    assert clock.now == began


def test_gc_removes_half_written_files_everywhere_but_those_that_are_written(desk, store: Store, monkeypatch):
    """By the clock of the file system alone: this machine's may be off."""
    monkeypatch.setattr("time.time", lambda: 1e10)
    (store.root / "programs").mkdir(exist_ok=True)
    run = store.run(store.ids()[0])
    run.write_evaluation("paloma", {})
    places = [store.root, store.data, store.root / "programs", run.path, run.attempt().path, run.path / "evaluations"]
    places += [store.root / "launches", store.launches()[0].folder]
    old = [half_written(place / f".a{i}.json.{i}-0123abcd", 2) for i, place in enumerate(places)]
    old += [half_written(store.data / ".request.77", 2)]
    new = [half_written(place / f".b{i}.json.{i}-0123abcd", 0.5) for i, place in enumerate(places)]
    others = [half_written(store.root / name, 9) for name in (".hidden", ".a.lock", "a.json.12", ".nfs0123abcd")]
    others += [half_written(store.data / ".text.0123abcd.building", 9)]
    said = collect(desk, "--yes").out
    assert f"{len(old)} places" in said
    assert [path.name for path in old if path.exists()] == []
    assert all(path.exists() for path in (*new, *others))
