"""A run's state, read off its files."""

import contextlib
import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from slicedice.spec import SCHEMA, canonical_json
from slicedice.store import Attempt, Claim, Kind, Onlooker, RunFolder, RunState, StoreError, run
from tests.store.agents import contents


def begin(folder: RunFolder, steps: int = 0) -> Claim:
    """An attempt of this process, with so many steps' metrics."""
    claim = folder.claim()
    assert claim is not None
    if steps:
        claim.metrics.write_text("".join(json.dumps({"step": i, "loss": 1.0}) + "\n" for i in range(steps)))
    return claim


def fail(folder: RunFolder, kind: Kind, reason: str = "", steps: int = 0) -> Claim:
    """An attempt that has ended without a result."""
    claim = begin(folder, steps)
    claim.fail(kind, reason)
    return claim


def finish(folder: RunFolder, kind: Kind = Kind.DONE, steps: int = 5, **content: Any) -> Claim:
    """An attempt that has ended with one."""
    claim = begin(folder)
    claim.finish(kind, {"steps": steps, **content})
    return claim


def test_a_run_that_nobody_began_is_missing(folder: RunFolder, tmp_path: Path):
    assert folder.state() == RunState(Kind.MISSING)
    assert RunFolder(tmp_path / "store" / "runs" / "never").state() == RunState(Kind.MISSING)


def test_create_writes_what_is_trained_and_how(folder: RunFolder, tiny):
    spec, execution = tiny()
    assert (folder.path / "spec.json").read_text() == canonical_json(spec) + "\n"
    assert folder.execution() == execution
    _, other = tiny({"execution.micro_batch": 2, "router.group": 1, "execution.remat": True})
    folder.create(spec, other)
    assert folder.execution() == other


@pytest.mark.parametrize("kind", [Kind.DONE, Kind.DIVERGED])
def test_a_result_ends_a_run_whatever_else_is_there(folder: RunFolder, kind: Kind):
    fail(folder, Kind.PREEMPTED, "long ago", steps=3)
    finish(folder, kind)
    assert folder.state() == RunState(kind, 5)
    assert folder.result() == {"schema": SCHEMA, "kind": kind, "attempt": 2, "steps": 5}
    Attempt(folder.path, 3).end_for_it(Kind.CRASHED, "long after")
    folder.cancel()
    assert folder.state() == RunState(kind, 5)
    assert folder.claim() is None


@pytest.mark.parametrize("kind", [Kind.PREEMPTED, Kind.CRASHED, Kind.OUT_OF_MEMORY])
def test_a_failure_is_told_with_its_reason_until_it_is_forgiven(folder: RunFolder, kind: Kind):
    fail(folder, kind, "because", steps=3)
    assert folder.state() == RunState(kind, 3, "because")
    folder.forgive()
    assert folder.state().kind is Kind.PREEMPTED


@pytest.mark.parametrize("count", [1, 2, 7])
def test_steps_are_those_of_the_newest_attempt_that_has_some(folder: RunFolder, count: int):
    fail(folder, Kind.PREEMPTED, steps=9)
    fail(folder, Kind.PREEMPTED, "because", steps=count)
    fail(folder, Kind.PREEMPTED, "before its first step").metrics.touch()
    assert folder.state() == RunState(Kind.PREEMPTED, count, "before its first step")
    assert folder.attempt().number == 2
    begin(folder)
    assert folder.state() == RunState(Kind.RUNNING, count)


def test_the_attempt_to_look_at_is_the_results_or_else_the_newest(folder: RunFolder):
    assert folder.attempt().number == 1
    fail(folder, Kind.PREEMPTED)
    fail(folder, Kind.PREEMPTED)
    assert folder.attempt().number == 2, "none has a step"
    finish(folder)
    (folder.path / "attempts" / "7").mkdir()
    assert folder.attempt().number == 3
    for number in ("x", None, True, [1]):
        result = {"schema": SCHEMA, "kind": "done", "steps": 5, "attempt": number}
        (folder.path / "result.json").write_text(json.dumps(result))
        assert folder.attempt().number == 7


@pytest.mark.parametrize("name", ["0", "01", "-1", "x", "3.bak", ".4", "٣"])
def test_what_lies_among_attempts_and_is_none(folder: RunFolder, name: str):
    fail(folder, Kind.PREEMPTED, "because")
    (folder.path / "attempts" / name).mkdir()
    assert [one.number for one in folder.attempts()] == [1]
    assert begin(folder).number == 2


def test_attempts_come_by_number_the_newest_first(folder: RunFolder):
    for number in (2, 10, 9, 1):
        (folder.path / "attempts" / str(number)).mkdir(parents=True)
    assert [one.number for one in folder.attempts()] == [10, 9, 2, 1]


@pytest.mark.parametrize("text", ["", '{"schema": 1, "kind": "done", "ste', "[1]", "null", '"done"', "\x00" * 40, "{}"])
def test_a_damaged_result_is_no_result(folder: RunFolder, text: str):
    finish(folder)
    (folder.path / "result.json").write_text(text)
    assert folder.result() is None
    state = RunState(Kind.MISSING, reason="its result.json cannot be read: it is damaged")
    assert folder.look() == (state, None)
    assert folder.state() == state
    shutil.rmtree(folder.path / "attempts")
    assert folder.state() == dataclasses.replace(state, kind=Kind.MISSING)
    # It is trained anew, and then says no more of it.
    finish(folder, steps=6)
    assert folder.state() == RunState(Kind.DONE, 6)


@pytest.mark.parametrize("name", ["result.json", "forgiven.json"])
def test_a_result_that_comes_while_one_looks_is_one(folder: RunFolder, monkeypatch: pytest.MonkeyPatch, name: str):
    claim, read = begin(folder), run.read_json

    def read_just_before(path: Path) -> dict | None:
        content = read(path)
        if path.name == name and not (folder.path / "result.json").exists():
            claim.finish(Kind.DONE, {"steps": 5})
        return content

    monkeypatch.setattr(run, "read_json", read_just_before)
    monkeypatch.setattr(Attempt, "seems_alive", lambda _: False)  # which would do as well
    state, result = folder.look()
    assert state == RunState(Kind.DONE, 5)
    assert result == folder.result()


def test_a_run_that_is_made_and_begun_while_one_looks_is_that_run(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    """Taken for a stray, it would be removed from under its worker."""
    spec, read = (folder.path / "spec.json").read_text(), Path.read_text
    (folder.path / "spec.json").unlink()

    def read_just_before(path: Path, *arguments: Any, **options: Any) -> str:
        try:
            return read(path, *arguments, **options)
        finally:
            if not (folder.path / "attempts").exists():
                (folder.path / "spec.json").write_text(spec)
                (folder.path / "attempts" / "1").mkdir(parents=True)

    monkeypatch.setattr(Path, "read_text", read_just_before)
    assert folder.foreign() == ""


def test_a_result_that_is_gone_is_trained_anew(folder: RunFolder):
    finish(folder)
    (folder.path / "result.json").unlink()
    assert folder.state() == RunState(Kind.MISSING, 0, "its result.json is gone")
    finish(folder, steps=6)
    assert folder.state() == RunState(Kind.DONE, 6)


def test_a_result_that_is_there_stays(folder: RunFolder, caplog: pytest.LogCaptureFixture):
    first, second = begin(folder), Claim(folder.path, 2)
    assert first.finish(Kind.DONE, {"steps": 5})
    assert not second.finish(Kind.DIVERGED, {"steps": 3})
    assert folder.state() == RunState(Kind.DONE, 5)
    assert "another attempt finished first" in caplog.text


@pytest.mark.parametrize("schema", [SCHEMA + 1, SCHEMA - 1, None, str(SCHEMA)])
def test_a_result_of_another_schema_is_no_result(folder: RunFolder, schema: object):
    content = {"schema": schema, "kind": "a kind to come", "something": "else"}
    (folder.path / "result.json").write_text(json.dumps(content))
    assert folder.result() is None
    why = f"it is of schema {schema!r}, and this version reads {SCHEMA}"
    assert folder.state() == RunState(Kind.MISSING, reason=f"its result.json cannot be read: {why}")


@pytest.mark.parametrize(
    "change", [{"kind": "crashed"}, {"kind": None}, {"steps": None}, {"steps": "5"}, {"steps": True}]
)
def test_a_result_that_does_not_say_how_it_ended_is_no_result(folder: RunFolder, change: dict):
    finish(folder)
    assert folder.look()[1] == folder.result() == {"schema": SCHEMA, "kind": "done", "attempt": 1, "steps": 5}
    content = {"schema": SCHEMA, "kind": "done", "steps": 5} | change
    (folder.path / "result.json").write_text(json.dumps(content))
    assert folder.result() is None
    why = f"it ends in {content['kind']!r} after {content['steps']!r} steps"
    assert folder.look() == (RunState(Kind.MISSING, reason=f"its result.json cannot be read: {why}"), None)


def test_a_result_that_cannot_be_read_leaves_the_state_to_the_other_files(folder: RunFolder):
    (folder.path / "result.json").write_text("torn")
    fail(folder, Kind.PREEMPTED, "a signal", steps=3)
    assert folder.state() == RunState(Kind.PREEMPTED, 3, "a signal")
    begin(folder)
    assert folder.look() == (RunState(Kind.RUNNING, 3), None)
    Attempt(folder.path, 2).end_for_it(Kind.CRASHED, "because")
    assert folder.state() == RunState(Kind.CRASHED, 3, "because")


def make_foreign(folder: RunFolder, tiny, how: str) -> str:
    """Makes what is in the folder another run's, or no one knows whose; returns what its reason says."""
    path = folder.path / "spec.json"
    if how == "missing":
        path.unlink()
    else:
        other = canonical_json(tiny({"seed": 1})[0])
        schema = other.replace(f'"schema":{SCHEMA}', f'"schema":{SCHEMA + 1}')
        path.write_bytes({"of another run": other, "schema": schema, "torn": other[:50]}[how].encode())
    return {"schema": "of another version", "torn": "damaged"}.get(how, how)


FOREIGN = ["of another run", "schema", "torn", "missing"]


@pytest.mark.parametrize("how", FOREIGN)
def test_what_may_be_another_runs_is_no_result_and_is_not_gone_on_with(folder: RunFolder, tiny, how: str):
    spec, execution = tiny()
    for is_done in (False, True):
        attempt = fail(folder, Kind.PREEMPTED, "long ago", steps=3)
        (attempt.checkpoints / "training" / "3").mkdir(parents=True)
        folder.cancel()
        if is_done:
            attempt.finish(Kind.DONE, {"steps": 5})
        else:
            attempt.fail(Kind.CRASHED, "long ago")
        assert folder.foreign() == ""
        told = make_foreign(folder, tiny, how)
        state, result = folder.look()
        assert (state.kind, state.steps, result, folder.result()) == (Kind.MISSING, 0, None, None)
        assert "its spec.json" in state.reason
        assert told in state.reason
        folder.create(spec, execution)
        assert folder.state() == RunState(Kind.MISSING)
        assert not attempt.path.exists()
    finish(folder)
    folder.create(spec, execution)
    assert folder.state() == RunState(Kind.DONE, 5)  # to make what is there again changes nothing


@pytest.mark.parametrize("how", FOREIGN)
def test_a_worker_in_a_foreign_folder_makes_it_running(folder: RunFolder, tiny, how: str):
    claim = begin(folder, steps=3)
    make_foreign(folder, tiny, how)
    assert folder.look() == (RunState(Kind.RUNNING), None)
    assert folder.claim() is None
    claim.finish(Kind.DONE, {"steps": 5})
    assert folder.state().kind is Kind.MISSING


def test_the_scales_label_makes_no_folder_foreign(folder: RunFolder, tiny):
    finish(folder)
    (folder.path / "spec.json").write_text(canonical_json(tiny({"scale": "another"})[0]))
    assert folder.state() == RunState(Kind.DONE, 5)


@pytest.mark.parametrize("what", ["run", "spec.json", "result.json", "attempts/1/metrics.jsonl", "attempts/1/end.json"])
def test_what_the_system_cannot_read_is_a_crash_that_names_it(folder: RunFolder, tiny, what: str):
    fail(folder, Kind.PREEMPTED, steps=3)
    path = folder.path if what == "run" else folder.path / what
    shutil.rmtree(path) if what == "run" else path.unlink(missing_ok=True)
    path.write_text("words") if what == "run" else path.mkdir()
    state, result = folder.look()
    assert (state.kind, result) == (Kind.CRASHED, None)
    assert str(path) in state.reason
    if what == "run":
        with pytest.raises(StoreError, match=str(path)):
            folder.create(*tiny())
        assert path.read_text() == "words"


def test_files_that_a_killed_process_had_half_written_are_ignored(folder: RunFolder):
    whole = json.dumps({"schema": SCHEMA, "kind": "done", "steps": 5})
    attempt = Attempt(folder.path, 1)
    attempt.path.mkdir(parents=True)
    for name in ("result.json", "cancel.json", "forgiven.json", "spec.json", "execution.json"):
        (folder.path / f".{name}.{os.getpid() + 1}-0123abcd").write_text(whole)
    for name in ("claim.json", "beat.json", "end.json", "data.json"):
        (attempt.path / f".{name}.{os.getpid() + 1}-0123abcd").write_text(whole)
    assert folder.state() == RunState(Kind.PREEMPTED, 0, "its worker ended without a word")
    assert (attempt.holder, attempt.ending(), attempt.fingerprint) == (None, None, None)


@pytest.mark.parametrize("how", FOREIGN)
def test_what_is_put_aside_is_kept_whole(folder: RunFolder, tiny, how: str):
    spec, execution = tiny()
    for number in (1, 2):
        finish(folder)
        folder.write_evaluation("paloma", {"number": number})
        make_foreign(folder, tiny, how)
        before = contents(folder.path)
        folder.create(spec, execution)
        assert contents(folder.path.with_name(f"{folder.path.name}.aside-{number}")) == before
        assert sorted(path.name for path in folder.path.iterdir()) == ["execution.json", "spec.json"]
    assert folder.state() == RunState(Kind.MISSING)
    assert folder.evaluations() == {}


def test_evaluations_are_kept_by_name_and_say_nothing_of_the_state(folder: RunFolder):
    before = folder.state()
    assert folder.evaluations() == {}
    for name, value in (("paloma", 1), ("my set/ä", 2), ("my set_ä", 3), ("paloma", 4)):
        folder.write_evaluation(name, {"value": value})
    found = folder.evaluations()
    assert {name: content and content["value"] for name, content in found.items()} == {
        "paloma": 4,
        "my set/ä": 2,
        "my set_ä": 3,
    }
    assert all(path.name.isascii() for path in (folder.path / "evaluations").iterdir())
    assert folder.state() == before


def test_an_evaluation_is_on_disk_before_training_goes_on(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    claim, synced = begin(folder), []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size))
    for step in (2, 4):
        claim.append_evaluation(step, "paloma", {"a": 1.0})
        assert synced[-1] == claim.evaluation_lines.stat().st_size


def test_evaluations_in_training_are_lines_by_step(folder: RunFolder):
    claim = begin(folder)
    claim.cut_evaluations(1)
    for step in (2, 4):
        claim.append_evaluation(step, "paloma", {"a": float(step)})
    lines = [{"step": step, "name": "paloma", "scores": {"a": step}} for step in (2, 4)]
    assert list(map(json.loads, claim.evaluation_lines.read_text().splitlines())) == lines
    claim.cut_evaluations(5)
    assert len(claim.evaluation_lines.read_text().splitlines()) == 2
    claim.cut_evaluations(4)
    assert list(map(json.loads, claim.evaluation_lines.read_text().splitlines())) == lines[:1]


def test_of_several_processes_on_an_attempt_the_others_write_nothing(folder: RunFolder):
    with begin(folder, steps=2) as first:
        first.begin_on("text")
        first.fail(Kind.PREEMPTED, "a signal")
    with begin(folder, steps=3) as claim:
        claim.begin_on("text")
        before = contents(folder.path)
        with Onlooker(folder.path, claim.number) as other:
            assert [one.number for one in other.begin_on("text")] == [1]
            assert other.begin_on("another") == []
            other.take_over(first, 1)
            with contextlib.closing(other.record()) as writer:
                writer.begin(1)
                writer.write({"step": 1, "loss": 1.0})
            other.append_evaluation(1, "x", {})
            other.cut_evaluations(0)
            other.progress(1, 1.0)
            other.finish(Kind.DONE, {"steps": 5})
            other.fail(Kind.CRASHED, "because")
            assert (other.writes, claim.writes) == (False, True)
        assert contents(folder.path) == before


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": 0, "name": "x"}', '{"schema": 1}', '{"schema": 1, "name": 3}']
)
def test_an_evaluation_that_cannot_be_read_is_named_by_its_file(folder: RunFolder, text: str):
    folder.write_evaluation("good", {})
    (folder.path / "evaluations" / "bad.json").write_text(text)
    assert {name: content is None for name, content in folder.evaluations().items()} == {
        "bad.json": True,
        "good": False,
    }


def test_kinds_are_results_or_failures_or_neither():
    assert {kind for kind in Kind if kind.has_result} == {Kind.DONE, Kind.DIVERGED}
    assert {kind for kind in Kind if kind.needs_retry} == {Kind.CRASHED, Kind.OUT_OF_MEMORY, Kind.PAUSED}
    assert {kind for kind in Kind if kind.is_to_train} == {Kind.MISSING, Kind.PREEMPTED, Kind.CANCELLED}
    for kind in Kind:
        assert not (kind.is_settled and kind.is_open), kind
        assert kind.is_settled or kind.is_open or kind is Kind.QUEUED, kind
