"""A run's state, read off its files and its lock."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import slicedice
from slicedice.spec import SCHEMA, canonical_json
from slicedice.store import Kind, RunFolder, RunState, Store, StoreError

HOLD = """
import sys
from pathlib import Path
from slicedice.store import RunFolder
with RunFolder(Path(sys.argv[1])).lock() as ours:
    print(ours, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path: Path, tiny) -> RunFolder:
    """A run that was made and not trained."""
    spec, execution = tiny()
    run = Store(tmp_path / "store").create().run(spec)
    run.create(spec, execution)
    return run


def write_steps(folder: RunFolder, count: int) -> None:
    folder.metrics.write_text("".join(json.dumps({"step": i, "loss": 1.0}) + "\n" for i in range(count)))


def hold(folder: RunFolder) -> subprocess.Popen[str]:
    """A process that holds the run's lock until it dies."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(slicedice.__file__).parents[1])},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.wait()
    process.stdout.close()


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
    write_steps(folder, 3)
    folder.fail(Kind.CRASHED, "long ago")
    folder.finish(kind, {"steps": 5})
    assert folder.state() == RunState(kind, 5)
    assert folder.result() == {"schema": SCHEMA, "kind": kind, "steps": 5}
    with folder.lock() as ours:
        assert ours
        assert folder.state() == RunState(kind, 5)
    folder.clear()
    assert folder.state() == RunState(Kind.MISSING)


@pytest.mark.parametrize("kind", [Kind.PREEMPTED, Kind.CRASHED, Kind.OUT_OF_MEMORY])
def test_a_failure_is_told_with_its_reason_until_it_is_forgotten(folder: RunFolder, kind: Kind):
    write_steps(folder, 3)
    folder.fail(kind, "because")
    assert folder.state() == RunState(kind, 3, "because")
    folder.forget_failure()
    assert folder.state().kind is Kind.PREEMPTED


@pytest.mark.parametrize("count", [1, 2, 7])
def test_metrics_without_a_worker_are_a_preempted_run(folder: RunFolder, count: int):
    write_steps(folder, count)
    state = folder.state()
    assert (state.kind, state.steps) == (Kind.PREEMPTED, count)
    assert state.reason


def test_checkpoints_without_metrics_are_a_preempted_run(folder: RunFolder):
    folder.checkpoints.mkdir()
    assert folder.state().kind is Kind.PREEMPTED
    folder.clear()
    assert folder.state() == RunState(Kind.MISSING)


def test_a_process_that_is_killed_lets_go_of_its_run(folder: RunFolder):
    write_steps(folder, 2)
    process = hold(folder)
    try:
        assert folder.state() == RunState(Kind.RUNNING, 2)
        with folder.lock() as ours:
            assert not ours
        assert folder.state().kind is Kind.RUNNING
        process.send_signal(signal.SIGKILL)
    finally:
        end(process)
    assert folder.state().kind is Kind.PREEMPTED
    with folder.lock() as ours:
        assert ours


def test_a_worker_on_a_failed_run_makes_it_running(folder: RunFolder):
    folder.fail(Kind.CRASHED, "long ago")
    process = hold(folder)
    try:
        assert folder.state().kind is Kind.RUNNING
    finally:
        end(process)
    assert folder.state() == RunState(Kind.CRASHED, 0, "long ago")


def test_a_lock_is_let_go_of_when_training_raises(folder: RunFolder):
    with contextlib.suppress(RuntimeError), folder.lock():
        assert folder.is_locked()
        raise RuntimeError("in training")
    assert not folder.is_locked()


def test_lookers_do_not_take_each_other_for_a_worker(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    with folder.lock():
        pass
    seen, close = [], os.close

    def look_again(descriptor: int) -> None:
        if not seen:
            seen.append(None)
            seen.append(folder.is_locked())
        close(descriptor)

    monkeypatch.setattr("slicedice.store.run.os.close", look_again)
    assert not folder.is_locked()
    assert seen == [None, False]


def test_a_worker_does_not_take_a_looker_for_another_worker(folder: RunFolder, monkeypatch: pytest.MonkeyPatch):
    # The parent looks at every run twice a second. A worker that comes just then must not pass its run over.
    with folder.lock():
        pass
    looking, close = threading.Event(), os.close

    def slowly(descriptor: int) -> None:
        if threading.current_thread() is looker:
            looking.set()
            pause.wait(0.05)
        close(descriptor)

    pause = threading.Event()
    monkeypatch.setattr("slicedice.store.run.os.close", slowly)
    looker = threading.Thread(target=folder.is_locked)
    looker.start()
    try:
        assert looking.wait(10)
        with folder.lock() as ours:
            assert ours
    finally:
        looker.join()


@pytest.mark.parametrize("text", ["", '{"schema": 1, "kind": "done", "ste', "[1]", "null", '"done"', "\x00" * 40, "{}"])
def test_a_damaged_result_is_no_result(folder: RunFolder, text: str):
    folder.finish(Kind.DONE, {"steps": 5})
    (folder.path / "result.json").write_text(text)
    assert folder.result() is None
    state = RunState(Kind.MISSING, reason="its result.json cannot be read: it is damaged")
    assert folder.look() == (state, None)
    assert folder.state() == state
    # It is trained anew, and then says no more of it.
    folder.finish(Kind.DONE, {"steps": 6})
    assert folder.state() == RunState(Kind.DONE, 6)


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
    folder.finish(Kind.DONE, {"steps": 5})
    assert folder.look()[1] == folder.result() == {"schema": SCHEMA, "kind": "done", "steps": 5}
    content = {"schema": SCHEMA, "kind": "done", "steps": 5} | change
    (folder.path / "result.json").write_text(json.dumps(content))
    assert folder.result() is None
    why = f"it ends in {content['kind']!r} after {content['steps']!r} steps"
    assert folder.look() == (RunState(Kind.MISSING, reason=f"its result.json cannot be read: {why}"), None)


def test_a_result_that_cannot_be_read_leaves_the_state_to_the_other_files(folder: RunFolder):
    (folder.path / "result.json").write_text("torn")
    write_steps(folder, 3)
    assert folder.state() == RunState(Kind.PREEMPTED, 3, "its result.json cannot be read: it is damaged")
    folder.fail(Kind.CRASHED, "because")
    assert folder.state() == RunState(Kind.CRASHED, 3, "because")
    process = hold(folder)
    try:
        assert folder.look() == (RunState(Kind.RUNNING, 3), None)
    finally:
        end(process)


@pytest.mark.parametrize(
    "text", ["", '{"kind": "cra', "[]", "{}", '{"kind": "tired"}', '{"kind": ["crashed"]}', '{"reason": "x"}']
)
def test_a_damaged_failure_is_a_crash_that_waits_to_be_retried(folder: RunFolder, text: str):
    # The run ended somehow: taken for one that was only interrupted, it would be trained and fail over and over.
    write_steps(folder, 3)
    (folder.path / "failure.json").write_text(text)
    assert folder.state() == RunState(Kind.CRASHED, 3, "its failure.json is damaged")
    folder.forget_failure()
    assert folder.state().kind is Kind.PREEMPTED


@pytest.mark.parametrize("kind", [Kind.DONE, Kind.DIVERGED, Kind.RUNNING, Kind.MISSING])
def test_a_failure_can_claim_no_success(folder: RunFolder, kind: Kind):
    (folder.path / "failure.json").write_text(json.dumps({"kind": kind, "reason": "x"}))
    assert folder.state() == RunState(Kind.CRASHED, 0, "its failure.json is damaged")


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
    write_steps(folder, 3)
    (folder.checkpoints / "training" / "3").mkdir(parents=True)
    folder.fail(Kind.CRASHED, "long ago")
    assert folder.foreign() == ""
    for finish in (False, True):
        if finish:
            folder.finish(Kind.DONE, {"steps": 5})
        told = make_foreign(folder, tiny, how)
        state, result = folder.look()
        assert (state.kind, state.steps, result, folder.result()) == (Kind.MISSING, 0, None, None)
        assert "its spec.json" in state.reason
        assert told in state.reason
        folder.create(spec, execution)
        assert folder.state() == RunState(Kind.MISSING)
        assert not folder.metrics.exists()
        assert not folder.checkpoints.exists()
    folder.finish(Kind.DONE, {"steps": 5})
    folder.create(spec, execution)
    assert folder.state() == RunState(Kind.DONE, 5)  # to make what is there again changes nothing


@pytest.mark.parametrize("how", FOREIGN)
def test_a_worker_in_a_foreign_folder_makes_it_running(folder: RunFolder, tiny, how: str):
    folder.finish(Kind.DONE, {"steps": 5})
    make_foreign(folder, tiny, how)
    process = hold(folder)
    try:
        assert folder.look() == (RunState(Kind.RUNNING), None)
    finally:
        end(process)
    assert folder.state().kind is Kind.MISSING


def test_the_scales_label_makes_no_folder_foreign(folder: RunFolder, tiny):
    folder.finish(Kind.DONE, {"steps": 5})
    (folder.path / "spec.json").write_text(canonical_json(tiny({"scale": "another"})[0]))
    assert folder.state() == RunState(Kind.DONE, 5)


@pytest.mark.parametrize("what", ["run", "spec.json", "result.json", "metrics.jsonl"])
def test_what_the_system_cannot_read_is_a_crash_that_names_it(folder: RunFolder, tiny, what: str):
    write_steps(folder, 3)
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
    for name in ("result.json", "failure.json", "spec.json", "execution.json"):
        (folder.path / f".{name}.{os.getpid() + 1}").write_text(whole)
    assert folder.state() == RunState(Kind.MISSING)


def test_clear_takes_evaluations_along(folder: RunFolder):
    folder.write_evaluation("paloma", {})
    folder.append_evaluation(2, "paloma", {})
    folder.clear()
    assert folder.evaluations() == {}
    assert not folder.evaluation_lines.exists()


def test_clear_leaves_what_is_to_be_trained(folder: RunFolder, tiny):
    spec, execution = tiny()
    write_steps(folder, 3)
    (folder.checkpoints / "training" / "3").mkdir(parents=True)
    folder.finish(Kind.DONE, {"steps": 5})
    folder.clear()
    assert not folder.checkpoints.exists()
    assert not folder.metrics.exists()
    assert folder.result() is None
    assert folder.execution() == execution
    assert (folder.path / "spec.json").read_text() == canonical_json(spec) + "\n"
    shutil.rmtree(folder.path)
    folder.create(spec, execution)
    assert folder.state() == RunState(Kind.MISSING)


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
    folder.append_evaluation(2, "paloma", {"a": 1.0})
    assert json.loads(folder.evaluation_lines.read_text()) == {"step": 2, "name": "paloma", "scores": {"a": 1.0}}
    assert folder.state() == before


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
    assert {kind for kind in Kind if kind.needs_retry} == {Kind.CRASHED, Kind.OUT_OF_MEMORY}
