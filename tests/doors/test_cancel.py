"""The verb cancel, of runs that wait in engines."""

import json
import shutil

from slicedice.store import Kind, Store
from tests import endings
from tests.doors.cluster import Engine, kinds, submit


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
