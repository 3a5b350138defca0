"""The door of one run: the same run, with the same id, as a point of a sweep."""

import json
import shutil

import pytest

TEXT = "--config.data.source=texts"

EXPERIMENT = """
from slicedice import files


def get_config():
    config = files.load("experiments", "smoke").get_config()
    config.scale = "mine"
    return config
"""


@pytest.fixture
def bench(desk):
    """A desk whose own launcher of the name `local` trains nothing."""
    (desk.folder / "launch").mkdir()
    shutil.move(desk.folder / "fake.py", desk.folder / "launch" / "local.py")
    return desk


def launched(bench) -> list[dict]:
    path = bench.folder / "launch" / "launched.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def outcome(bench, kind: str) -> None:
    bench.write("launch/outcomes.json", json.dumps({"*": kind}))


def test_one_run_is_trained_once_and_told(bench):
    call = bench.train("--config", "smoke", TEXT, "--config.seed=3")
    assert (call.status, call.err) == (0, "")
    (run,) = bench.runs
    assert launched(bench) == [{"runs": [run.path.name], "max_concurrent": 1}]
    assert f"smoke-dense-seed3 · runs/runs/{run.path.name}" in call.out
    assert "3.0000" in call.out
    again = bench.train("--config", "smoke", TEXT, "--config.seed=3")
    assert again.status == 0
    assert "3.0000" in again.out
    assert len(launched(bench)) == 1


def test_a_point_of_a_sweep_is_the_same_run(bench):
    assert bench.sweep(launcher="local").status == 0
    call = bench.train("--config", "smoke", TEXT, "--config.model.experts=n=8 k=4 g=1/4")
    assert call.status == 0
    assert len(bench.runs) == 3
    assert len(launched(bench)) == 1
    assert "smoke-g1/4-n8-s2-dropless-seed0" in call.out


@pytest.mark.parametrize("kind", ["crashed", "out_of_memory"])
def test_a_failed_run_is_told_and_retried_when_asked_for(bench, kind: str):
    outcome(bench, kind)
    call = bench.train("--config", "smoke", TEXT)
    assert call.status == 1
    assert kind in call.out
    assert "because" in call.out
    outcome(bench, "done")
    assert bench.train("--config", "smoke", TEXT).status == 1
    assert len(launched(bench)) == 1
    assert bench.train("--config", "smoke", TEXT, "--retry").status == 0
    assert len(launched(bench)) == 2


@pytest.mark.parametrize(("kind", "status"), [("diverged", 0), ("preempted", 1), ("missing", 1)])
def test_the_status_says_whether_there_is_a_result(bench, kind: str, status: int):
    outcome(bench, kind)
    call = bench.train("--config", "smoke", TEXT)
    assert call.status == status
    assert kind in call.out
    outcome(bench, "done")
    assert bench.train("--config", "smoke", TEXT).status == 0
    assert len(launched(bench)) == 1 + status


def test_a_path_is_an_experiment_as_well(bench):
    bench.write("mine.py", EXPERIMENT)
    call = bench.train("--config", "./mine.py", TEXT, "--store", "elsewhere")
    assert call.status == 0
    assert "mine-dense-seed0 · elsewhere/runs/" in call.out


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--config", "smok", TEXT], ["smok", "smoke", "nano"]),
        (["--config", "smoke", TEXT, "--config.model.experts=n=4 k=2 g=1/4"], ["model.experts", "1/2"]),
        (["--config", "smoke", TEXT, "--config.model.expert=dense"], ["model.expert", "model.experts"]),
        (["--config", "smoke", TEXT, "--seeds=2"], ["--seeds=2"]),
        (["--config", "smoke", "--config.data.source=nowhere"], ["nowhere"]),
        (["--config", "smoke", TEXT, "--store=texts"], ["texts", "--store"]),
    ],
)
def test_bad_input_is_told_in_a_paragraph(bench, arguments: list[str], names: list[str]):
    call = bench.train(*arguments)
    assert (call.status, call.out) == (2, "")
    assert len(call.err.strip().splitlines()) == 1
    assert all(name in call.err for name in names), call.err
    assert launched(bench) == []
