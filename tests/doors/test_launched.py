"""What sweeps submit to an engine, once, and retry; what bad settings are told."""

import json
import sys

import pytest

from slicedice.launching import Phase, missing
from slicedice.store import Kind, Launch, Store, objects
from slicedice.store.launches import write_launch
from tests import endings
from tests.doors.cluster import CLUSTER, Engine, kinds, submit


def test_what_is_submitted_is_what_a_dry_run_says_and_the_sweep_returns(cluster):
    dry = submit(cluster, "--dry_run", "--launcher.partition=gpu")
    assert dry.status == 0
    assert not (cluster.folder / "runs").exists()
    files = json.loads(submit(cluster, "--dry_run", "--launcher.partition=gpu", "--json").out)["files"]
    assert len(files) == 3  # three programs
    call = submit(cluster, "--launcher.partition=gpu")
    assert call.status == 0
    assert "3 runs in 3 work units" in call.out
    (launch,) = Store(cluster.folder / "runs").launches()
    assert launch.handles == ("job0", "job1", "job2")
    assert launch.settings == {"partition": "gpu"}
    for name, text in files.items():
        assert (launch.folder / name).read_text() == text
        assert text in dry.out
        assert text.endswith("# gpu")
        assert f"--store {cluster.folder / 'runs'} --unit {launch.name}/" in text


def test_runs_of_a_program_are_a_unit_as_far_as_its_hours_go(cluster):
    submit(cluster, "--seeds", "4")
    submit(cluster, "--seeds", "8", "--unit_hours", "1e-9")
    first, second = Store(cluster.folder / "runs").launches()
    assert [len(unit) for unit in first.units] == [4, 4, 4]
    assert [len(unit) for unit in second.units] == [1] * 12


def test_what_is_queued_is_not_submitted_again(cluster):
    submit(cluster)
    assert set(kinds(cluster).values()) == {"queued"}
    again = submit(cluster)
    assert again.status == 0
    assert "All 3 runs that are left are in an engine's queue" in again.out
    assert len(Store(cluster.folder / "runs").launches()) == 1
    (cluster.folder / "launch" / "queue.json").write_text(json.dumps([Phase.ENDED, Phase.RUNNING, Phase.ENDED]))
    assert sorted(kinds(cluster).values()) == ["missing", "missing", "queued"]
    assert "2 runs in 2 work units" in submit(cluster).out


def test_what_is_queued_by_a_launcher_that_is_a_path_is_not_submitted_again(cluster):
    for _ in range(2):
        said = cluster.sweep(launcher="./launch/cluster.py").out
    assert "All 3 runs that are left are in an engine's queue" in said
    assert len(Store(cluster.folder / "runs").launches()) == 1


def test_an_engine_that_cannot_be_asked_is_told_and_stops_nothing(cluster):
    submit(cluster)
    (cluster.folder / "launch" / "queue.json").unlink()
    said = cluster.sweep("status", launcher="cluster")
    assert said.status == 0
    assert "the engine is on holiday" in said.out
    assert set(kinds(cluster).values()) == {"missing"}


def test_a_launcher_that_a_store_names_by_path_is_not_executed(cluster):
    cluster.write("trap.py", "from pathlib import Path\nPath('sprung').touch()\n")
    cluster.sweep()
    store = Store(cluster.folder / "runs")
    (store.run(store.ids()[0]).path / "result.json").unlink()
    name = store.next_launch("trap")
    trap = Launch(name, store.launch_folder(name), "./trap.py", {}, (tuple(store.ids()),), ("u",))
    write_launch(trap, {})
    assert "--launcher ./trap.py" in cluster.sweep("status").out.replace("\n", " ")
    for verb in (["cancel"], ["logs", store.ids()[0]], ["report"]):
        cluster.sweep(*verb)
    assert not (cluster.folder / "sprung").exists()


def test_what_failed_is_not_submitted_again_where_a_unit_waits_that_takes_it(cluster):
    submit(cluster)
    store = Store(cluster.folder / "runs")
    (launch,) = store.launches()
    for id_ in store.ids():
        endings.fail(store.run(id_), Kind.CRASHED, "because")
    (cluster.folder / "launch" / "queue.json").write_text(json.dumps(["queued", "running", "ended"]))
    call = submit(cluster, "retry")
    assert call.status == 0
    assert "1 runs are tried again by work units that wait in an engine's queue" in call.out
    # A unit that runs may be past what failed in it.
    assert store.launches()[1].units == launch.units[1:]
    assert {store.run(id_).state().kind for id_ in store.ids()} == {Kind.MISSING}
    (waiting,) = launch.units[0]
    endings.fail(store.run(waiting), Kind.CRASHED, "because")
    assert "1 runs are tried again" in submit(cluster, "retry").out
    assert store.run(waiting).state().kind is Kind.MISSING
    assert len(store.launches()) == 2


def test_what_there_is_to_retry_is_not_what_is_missing(cluster):
    submit(cluster, "--only", "*-n4-*")
    call = submit(cluster, "retry")
    assert "There is nothing to retry" in call.out
    assert "in an engine's queue" not in call.out  # of those that were never submitted


def test_a_sweep_whose_launch_another_began_leaves_what_that_one_has_marked(cluster, monkeypatch: pytest.MonkeyPatch):
    submit(cluster)
    store = Store(cluster.folder / "runs")
    (cluster.folder / "launch" / "queue.json").write_text(json.dumps(["ended"] * 3))
    for id_ in store.ids():
        store.run(id_).cancel()

    def taken(launch: Launch, rendered: object) -> None:
        write_launch(launch, {})
        write_launch(launch, {})

    monkeypatch.setattr(missing, "write_launch", taken)
    call = submit(cluster)
    assert call.status == 2
    assert "another sweep began at the same moment" in call.err
    assert {store.run(id_).state().kind for id_ in store.ids()} == {Kind.MISSING}


def test_a_submission_that_is_refused_leaves_runs_as_they_were(cluster):
    submit(cluster)
    store = Store(cluster.folder / "runs")
    (cluster.folder / "launch" / "queue.json").write_text(json.dumps(["ended"] * 3))
    first, second, _ = store.ids()
    endings.fail(store.run(first), Kind.CRASHED, "because")
    store.note_ending(first)
    store.run(second).cancel()
    before = kinds(cluster)
    assert {"crashed", "cancelled"} <= set(before.values())
    refusing = CLUSTER.replace("for name, text in rendered.items()", "raise LaunchError('full')\n        for _ in ()")
    cluster.write("launch/cluster.py", refusing)
    for verb in ("retry", "run"):
        call = submit(cluster, verb)
        assert call.status == 2
        assert "full" in call.err
        assert kinds(cluster) == before
    assert "because" in store.programs.paused().popitem()[1].reason
    cluster.write("launch/cluster.py", CLUSTER)
    assert submit(cluster, "retry").status == 0
    assert store.run(first).state().kind is Kind.MISSING
    assert not store.programs.paused()


@pytest.mark.parametrize(
    ("raised", "status", "is_told"),
    [("KeyboardInterrupt", 130, True), ("LaunchError('no')", 2, False), ("LeftoverError('no')", 2, True)],
)
def test_a_launch_that_may_have_left_jobs_is_told_of(cluster, raised: str, status: int, is_told: bool):
    Engine(cluster, "engine", submit=f"from slicedice.launching import LeftoverError; raise {raised}")
    assert cluster.sweep(launcher="engine").status == status
    (launch,) = Store(cluster.folder / "runs").launches()
    assert launch.handles == ()
    assert (f"{launch.name} was interrupted" in cluster.sweep("status").out.replace("\n", " ")) is is_told
    assert "it has not begun" in cluster.sweep("logs", launch.units[0][0], grid="", scale="").out
    assert submit(cluster, "cancel").status == is_told


def test_jobs_that_cannot_be_put_on_record_are_taken_back(cluster, monkeypatch: pytest.MonkeyPatch):
    def write(launch: Launch, rendered: dict[str, str]) -> None:
        if launch.handles:
            raise OSError("the disk is full")
        write_launch(launch, rendered)

    monkeypatch.setattr(missing, "write_launch", write)
    with pytest.raises(OSError, match="the disk is full"):
        submit(cluster)
    assert json.loads((cluster.folder / "launch" / "queue.json").read_text()) == ["ended"] * 3


def test_a_store_that_is_none_has_no_garbage(desk):
    call = desk.sweep("gc", "--store", "elsewhere", grid="", scale="")
    assert call.status == 2
    assert "elsewhere" in call.err


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--launcher.color=blue", "--launcher.size=3"], ["--launcher.size", "color, most"]),
        (["--launcher.most=many"], ["--launcher.most", "many", "int"]),
        (["--launcher.most"], ["--launcher.most", "--launcher.FIELD=VALUE"]),
        (["status", "--watch", "--json"], ["--watch", "--json"]),
        (["plan", "--watch"], ["--watch", "status"]),
        (["status", "--yes"], ["--yes", "gc"]),
        (["--unit_hours", "0"], ["--unit_hours", "over 0"]),
        (["status", "--launcher.color=blue"], ["--launcher.color", "blue", "run and retry"]),
        (["plan", "--launcher.most"], ["--launcher.most", "run and retry"]),
        (["cancel", "--launcher.most=3"], ["--launcher.most", "run and retry"]),
        (["gc", "--launcher.most=3"], ["--launcher.most", "run and retry"]),
        (["gc", "--force"], ["--force", "--help"]),
        (["logs", "0", "--tail=3"], ["--tail=3", "--help"]),
    ],
)
def test_bad_settings_are_told(desk, arguments: list[str], names: list[str]):
    call = desk.sweep(*arguments)
    assert call.status == 2
    assert all(name in call.err for name in names), call.err
    assert desk.launched == []


def test_a_package_that_a_bucket_takes_is_named_and_no_number_of_an_error(desk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.setitem(sys.modules, "gcsfs.core", None)
    monkeypatch.setattr(objects, "service", objects.service.__wrapped__)
    call = desk.sweep("status", "--store", "gs://bucket/runs")
    assert call.status == 2
    assert call.err.startswith("gs:// takes gcsfs")
    assert call.err.endswith("pip install 'slicedice[gcs]'.\n")
