"""Sweeps over folders that were copied, damaged or replaced: what is not a run's own is trained, the rest stays."""

import json
import shutil
from pathlib import Path

import pytest

from slicedice.spec import run_id
from slicedice.store import Kind, Store


@pytest.fixture
def folders(desk) -> list[Path]:
    """The folders of a sweep that is done."""
    desk.sweep()
    return [run.path for run in desk.runs]


def test_a_folder_copied_under_another_runs_id_is_trained_as_that_run(desk, folders: list[Path]):
    copied, victim, untouched = folders
    before = (untouched / "result.json").read_bytes()
    shutil.rmtree(victim)
    trained = Path("attempts/1/metrics.jsonl"), Path("attempts/1/checkpoints")
    (copied / trained[0]).write_text('{"step": 0}\n')
    (copied / trained[1]).mkdir()
    shutil.copytree(copied, victim)
    status = desk.sweep("status").out
    assert "its spec.json is of another run" in status
    plan = json.loads(desk.sweep("plan", "--json").out)
    assert [run["id"] for run in plan["runs"] if run["to_train"]] == [victim.name]
    assert desk.sweep().status == 0
    assert desk.launched[1:] == [[victim.name]]
    store = Store(desk.folder / "runs")
    assert run_id(store.read_spec(victim.name)) == victim.name
    assert store.run(victim.name).state().kind is Kind.DONE
    # What the other had trained is not gone on with, and it has kept it.
    assert not any((victim / path).exists() for path in trained)
    assert all((copied / path).exists() for path in trained)
    assert (untouched / "result.json").read_bytes() == before
    assert desk.sweep().status == 0
    assert len(desk.launched) == 2


def test_a_copy_beside_a_run_is_named_and_left_alone(desk, folders: list[Path]):
    copy = folders[0].with_name(f"{folders[0].name} copy")
    shutil.copytree(folders[0], copy)
    call = desk.sweep()
    assert call.status == 0
    assert len(desk.launched) == 1
    assert copy.name in call.out
    assert (copy / "result.json").read_bytes() == (folders[0] / "result.json").read_bytes()


def test_a_sweep_goes_on_beside_a_file_where_a_run_should_be(desk, folders: list[Path]):
    for path in folders[:2]:
        shutil.rmtree(path)
    folders[0].write_text("words")
    call = desk.sweep()
    assert call.status == 1
    assert f"{folders[0].name} crashed: its folder cannot be read" in call.out
    assert desk.launched[1:] == [[folders[1].name]]
    retried = desk.sweep("retry")
    assert retried.status == 2
    assert "Remove it to train the run." in retried.err
    assert str(folders[0].name) in retried.err
    assert folders[0].read_text() == "words"
    folders[0].unlink()
    assert desk.sweep().status == 0


@pytest.mark.parametrize("provenance", [None, [], {}])
def test_a_result_that_does_not_say_its_text_does_not_stop_a_sweep(desk, folders: list[Path], provenance):
    path = folders[0] / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "provenance": provenance}))
    call = desk.sweep()
    assert call.status == 0
    assert "its result.json is damaged" in call.out
    assert len(desk.launched) == 1


def test_what_an_error_has_in_brackets_is_told_as_it_is(desk):
    reason = "ValueError: [/red] f32[batch,4] :smile: [bold]"
    source = (desk.folder / "fake.py").read_text()
    desk.write("fake.py", source.replace('"because"', repr(reason)))
    desk.outcomes(n4="crashed")
    assert reason in desk.sweep().out
    for verb in ("status", "report"):
        assert reason in desk.sweep(verb).out
    assert reason in desk.sweep("report", "--missing").out
