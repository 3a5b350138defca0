"""Verbs for runs that were launched: status, logs, cancel, retry, gc; and what a dry run says."""

import json
import shutil
import sys
import threading
import time
import unicodedata
from datetime import datetime

import pytest

from slicedice import operating, status
from slicedice.launching import Phase, missing
from slicedice.report.results import read_results
from slicedice.store import Kind, Launch, Store, objects
from slicedice.store.launches import write_launch
from tests import endings

CLUSTER = '''
"""An engine that keeps what it is given in a file, and does nothing with it."""

import json
from dataclasses import dataclass
from pathlib import Path

from slicedice.launching import LaunchError, Phase

QUEUE = Path(__file__).parent / "queue.json"


@dataclass(frozen=True)
class Cluster:
    partition: str = "any"

    def render(self, job):
        return {f"unit-{i}.sh": job.command(i) + f" # {self.partition}" for i, _ in enumerate(job.units)}

    def submit(self, job, rendered):
        for name, text in rendered.items():
            assert (job.store.launch_folder(job.name) / name).read_text() == text
        QUEUE.write_text(json.dumps(["queued"] * len(job.units)))
        return [f"job{i}" for i, _ in enumerate(job.units)]

    def poll(self, launch):
        if not QUEUE.exists():
            raise LaunchError("the engine is on holiday")
        return [Phase(phase) for phase in json.loads(QUEUE.read_text())]

    def cancel(self, launch, units):
        phases = json.loads(QUEUE.read_text())
        QUEUE.write_text(json.dumps(["ended" if i in units else phase for i, phase in enumerate(phases)]))

    def logs(self, launch, unit):
        return f"{launch.handles[unit]} says hello"


def get_launcher():
    return Cluster()
'''


@pytest.fixture
def cluster(desk):
    """A desk with a launcher whose queue outlives the sweep."""
    desk.write("launch/cluster.py", CLUSTER)
    return desk


def submit(desk, *arguments: str):
    return desk.sweep(*arguments, launcher="cluster")


def kinds(desk, *arguments: str) -> dict[str, str]:
    """States by name, as the verb status tells them."""
    said = desk.sweep("status", "--json", *arguments, launcher="cluster")
    assert said.status == 0
    return {run["name"]: run["state"] for run in json.loads(said.out)["runs"]}


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


def test_cancelled_runs_leave_their_engine_and_come_again_when_asked_for(cluster):
    submit(cluster)
    call = submit(cluster, "cancel", "--only", "*-n4-*")
    assert call.status == 0
    assert "1 runs are cancelled" in call.out
    states = kinds(cluster)
    assert sorted(states.values()) == ["cancelled", "queued", "queued"]
    assert json.loads((cluster.folder / "launch" / "queue.json").read_text()).count("ended") == 1
    assert "1 runs in 1 work units" in submit(cluster).out
    assert set(kinds(cluster, "--only", "*-n4-*").values()) == {"queued"}


def test_a_unit_that_has_other_runs_besides_stays_in_its_queue(cluster):
    submit(cluster, "--seeds", "2")
    submit(cluster, "cancel", "--seeds", "2", "--only", "*-seed1")
    assert json.loads((cluster.folder / "launch" / "queue.json").read_text()) == ["queued"] * 3
    states = kinds(cluster, "--seeds", "2")
    assert {name.rpartition("-")[2]: state for name, state in states.items()} == {
        "seed0": "queued",
        "seed1": "cancelled",
    }
    assert "3 runs in 3 work units" in submit(cluster, "--seeds", "2").out
    assert set(kinds(cluster, "--seeds", "2").values()) == {"queued"}


class Engine:
    """A launcher of its own, with the file of its queue."""

    def __init__(self, desk, name: str, **replaced: str):
        text = CLUSTER.replace("queue.json", f"{name}.json")
        for old, new in replaced.items():
            assert f"def {old}(" in text
            head, body = text.split(f"    def {old}(")
            text = f"{head}    def {old}({body.partition(chr(10))[0]}\n        {new}\n{body.partition(chr(10))[2]}"
        desk.write(f"launch/{name}.py", text)
        self.queue = desk.folder / "launch" / f"{name}.json"

    @property
    def phases(self) -> list[str]:
        return json.loads(self.queue.read_text())


def test_what_an_engine_that_was_away_did_not_cancel_it_does_when_asked_again(cluster):
    engine = Engine(cluster, "engine")
    cluster.sweep(launcher="engine")
    away = engine.queue.rename(cluster.folder / "away")
    first = submit(cluster, "cancel")
    assert first.status == 1
    assert "3 runs are cancelled" in first.out
    assert "the engine is on holiday" in first.out
    away.rename(engine.queue)
    again = submit(cluster, "cancel")
    assert again.status == 0
    assert "3 work units whose runs were cancelled before are taken" in again.out
    assert engine.phases == ["ended"] * 3
    assert "There is nothing to cancel" in submit(cluster, "cancel").out


def test_an_engine_that_does_not_cancel_is_told_and_the_others_do(cluster):
    stuck = Engine(cluster, "stuck", cancel="raise LaunchError('it is stuck')")
    cluster.sweep("--only", "*-n4-*", launcher="stuck")
    submit(cluster)
    call = submit(cluster, "cancel")
    assert call.status == 1
    assert "it is stuck" in call.out
    assert (stuck.phases, json.loads((cluster.folder / "launch" / "queue.json").read_text())) == (
        ["queued"],
        ["ended"] * 2,
    )


def test_a_run_in_two_queues_leaves_both(cluster):
    engine = Engine(cluster, "engine")
    cluster.sweep("--only", "*-n4-*", launcher="engine")
    away = engine.queue.rename(cluster.folder / "away")
    submit(cluster, "cancel")
    submit(cluster)
    away.rename(engine.queue)
    assert submit(cluster, "cancel").status == 0
    assert (engine.phases, json.loads((cluster.folder / "launch" / "queue.json").read_text())) == (
        ["ended"],
        ["ended"] * 3,
    )


def test_a_unit_of_a_program_that_is_paused_leaves_its_queue(cluster):
    submit(cluster, "--seeds", "3", "--only", "*-n4-*")
    store = Store(cluster.folder / "runs")
    first, second, third = (store.matching(f"*-n4-*-seed{seed}")[0] for seed in range(3))
    endings.fail(store.run(second), Kind.CRASHED, "because")
    store.note_ending(second)
    states = kinds(cluster, "--seeds", "3", "--only", "*-n4-*")
    assert sorted(states.values()) == ["crashed", "paused", "paused"]
    # The crashed one is passed over by its unit, and so is the third: nothing is left there when the first goes.
    call = submit(cluster, "cancel", "--seeds", "3", "--only", "*-n4-*-seed0")
    assert call.status == 0
    assert "1 runs are cancelled" in call.out
    assert json.loads((cluster.folder / "launch" / "queue.json").read_text()) == ["ended"]
    store.forgive(second, store.read_spec(second), store.run(second).execution())
    assert [store.run(id_).state().kind for id_ in (first, second, third)] == [
        Kind.CANCELLED,
        Kind.MISSING,
        Kind.MISSING,
    ]


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


def test_jobs_of_the_store_that_a_copy_was_made_of_are_not_the_copys(cluster):
    submit(cluster)
    queue, store = cluster.folder / "launch" / "queue.json", Store(cluster.folder / "runs")
    (launch,) = store.launches()
    shutil.copytree(store.root, cluster.folder / "copy")
    call = submit(cluster, "cancel", "--store", "copy")
    assert "3 runs are cancelled" in call.out
    assert f"{launch.name} was launched from a store elsewhere" in " ".join(call.out.split())
    assert json.loads(queue.read_text()) == ["queued"] * 3
    assert "3 runs in 3 work units" in submit(cluster, "--store", "copy").out
    (cluster.folder / "link").symlink_to("runs")
    for same in ("link", "runs/", "launch/../runs", str(store.root)):
        assert "in an engine's queue" in submit(cluster, "--store", same).out
    assert submit(cluster, "cancel", "--store", "link").status == 0
    assert json.loads(queue.read_text()) == ["ended"] * 3


def test_results_are_not_cancelled(cluster):
    cluster.sweep()
    assert "There is nothing to cancel" in submit(cluster, "cancel").out
    assert set(kinds(cluster).values()) == {"done"}


def test_what_trains_is_told_with_its_step_speed_end_and_health(cluster):
    submit(cluster)
    store = Store(cluster.folder / "runs")
    run = store.run(store.matching("smoke-g1/2-n4-*")[0])
    claim = run.claim()
    assert claim
    with claim:
        line = {"step": 49, "cross_entropy": 3.5, "load_imbalance": 1.25, "dead_experts": 2.0, "dropped_share": 0.125}
        claim.metrics.write_text(json.dumps(line) + "\n")
        claim.progress(50, 0.5)
        claim.beat()
        (row,) = json.loads(cluster.sweep("status", "--json", "--only", "*-n4-*").out)["runs"]
        assert (row["state"], row["steps"], row["seconds_per_step"]) == ("running", 50, 0.5)
        assert (row["load_imbalance"], row["dead_experts"], row["dropped_share"]) == (1.25, 2.0, 0.125)
        left = (row["last_step"] - 50) * 0.5
        assert row["last_step"] > 50
        ends = datetime.fromisoformat(row["ends"]).timestamp()
        assert ends == pytest.approx(claim.signs.at + left, abs=2)
        told = " ".join(cluster.sweep("status").out.split())
        for words in (f"50 of {row['last_step']}", "500", "1.25", "12.5%", "running", "The last of those that train"):
            assert words in told


def test_watching_ends_when_nothing_trains_or_waits(cluster, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(status, "PAUSE_SECONDS", 0.05)
    submit(cluster)
    store = Store(cluster.folder / "runs")

    def finish() -> None:
        time.sleep(0.5)
        for id_ in store.ids():
            endings.fail(store.run(id_), Kind.CRASHED, "because")

    thread = threading.Thread(target=finish)
    thread.start()
    said = cluster.sweep("status", "--watch")
    thread.join()
    assert said.status == 0
    assert "3 runs: 3 queued" in said.out
    assert "because" in said.out


ASKS = "with Path(__file__).with_name('asked').open('a') as file: file.write('x')"


def test_a_dry_run_asks_engines_once(cluster):
    Engine(cluster, "engine", poll=ASKS)
    cluster.sweep(launcher="engine")
    asked = cluster.folder / "launch" / "asked"
    assert not asked.exists()
    said = json.loads(cluster.sweep("--dry_run", "--json", launcher="engine").out)
    assert (said["to_train"], said["units"]) == (0, [])
    assert asked.read_text() == "x"


def test_engines_are_asked_less_often_than_the_store_is_read(cluster, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(status, "PAUSE_SECONDS", 0.01)
    Engine(cluster, "engine", poll=ASKS)
    cluster.sweep(launcher="engine")
    store, looks = Store(cluster.folder / "runs"), []

    def read(*arguments):
        looks.append(arguments)
        if len(looks) == 5:
            for id_ in store.ids():
                endings.fail(store.run(id_), Kind.CRASHED, "because")
        return read_results(*arguments)

    monkeypatch.setattr(status, "read_results", read)
    assert cluster.sweep("status", "--watch").status == 0
    assert len(looks) >= 5
    assert (cluster.folder / "launch" / "asked").read_text() == "x"


def test_watching_goes_on_with_a_run_that_is_in_its_queue_again(cluster, monkeypatch: pytest.MonkeyPatch):
    """While it trained, its engine was not asked about it."""
    monkeypatch.setattr(status, "PAUSE_SECONDS", 0.01)
    Engine(cluster, "engine", poll=ASKS)
    cluster.sweep("--only", "*-n4-*", launcher="engine")
    store, looks = Store(cluster.folder / "runs"), []
    (run,) = map(store.run, store.ids())
    claim = run.claim()
    assert claim

    def read(*arguments):
        looks.append(arguments)
        if len(looks) == 3:
            claim.fail(Kind.PREEMPTED, "because")
        if len(looks) == 8:
            endings.fail(run, Kind.CRASHED, "because")
        return read_results(*arguments)

    monkeypatch.setattr(status, "read_results", read)
    with claim:
        said = cluster.sweep("status", "--watch", "--only", "*-n4-*").out
    first, then = said.index("1 runs: 1 running"), said.index("1 runs: 1 queued")
    assert first < then
    assert len(looks) >= 8
    assert (cluster.folder / "launch" / "asked").read_text() == "x"


def test_logs_are_the_runs_own_and_the_engines(cluster):
    submit(cluster)
    store = Store(cluster.folder / "runs")
    run = store.matching("smoke-dense-*")[0]
    told = cluster.sweep("logs", "smoke-dense-seed0", grid="", launcher="cluster", scale="")
    assert "it has not begun" in told.out
    assert "job0 says hello" in told.out
    store.run(run).log_of(0).write_text("first line\n[bold]last\n")
    assert "[bold]last" in cluster.sweep("logs", run[:6], grid="", scale="").out
    for name in ("smoke-*", "nothing"):
        call = cluster.sweep("logs", name, grid="", scale="")
        assert call.status == 2
        assert name in call.err


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


def test_the_tail_of_a_log_is_what_is_printed(desk, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(operating, "TAIL_LINES", 2)
    desk.sweep()
    store = Store(desk.folder / "runs")
    store.run(store.ids()[0]).log_of(0).write_text("a line\nanother\nthe last\n")
    Engine(desk, "fake", logs='return "one\\ntwo\\nthree\\n"')
    name = store.next_launch("later")
    write_launch(Launch(name, store.launch_folder(name), "fake", {}, ((store.ids()[0],),), ("u",)), {})
    said = desk.sweep("logs", store.ids()[0], grid="", scale="").out
    assert "a line" not in said
    assert "another\nthe last" in said
    assert "one" not in said
    assert said.endswith("two\nthree\n")


def test_a_log_that_is_written_for_a_terminal_is_printed_as_text(cluster):
    """Of a store that is somebody else's, sequences of a terminal could write its title, its clipboard and more."""
    Engine(cluster, "engine", logs="return 'theirs\\x1b]52;c;ZXZpbA==\\x07end'")
    cluster.sweep(launcher="engine")
    store = Store(cluster.folder / "runs")
    (run,) = store.matching("smoke-dense-*")
    store.run(run).log_of(0).write_text("own\x1b[2J\x9b31mred\x00\x7f\ttabbed é\n")
    (store.run(run).path / "log\x1b[1m.txt").write_text("odd\n")
    said = cluster.sweep("logs", run, grid="", scale="").out
    assert "own\N{REPLACEMENT CHARACTER}[2J" in said
    assert "tabbed é" in said
    assert "theirs\N{REPLACEMENT CHARACTER}]52;c;ZXZpbA==\N{REPLACEMENT CHARACTER}end" in said
    assert {character for character in said if unicodedata.category(character) == "Cc"} <= {"\n", "\t"}
