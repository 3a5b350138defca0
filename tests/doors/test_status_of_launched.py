"""The verb status, of runs that train or wait in engines."""

import json
from datetime import datetime

import pytest

from slicedice import status
from slicedice.report.results import read_results
from slicedice.store import Kind, Store
from tests import endings
from tests.doors.cluster import ASKS, Engine, submit


def all_crash_at_look(number: int, cluster, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Has all runs crash just before the store is read for that time; returns a list that grows with each."""
    store, looks = Store(cluster.folder / "runs"), []

    def read(*arguments):
        looks.append(arguments)
        if len(looks) == number:
            for id_ in store.ids():
                endings.fail(store.run(id_), Kind.CRASHED, "because")
        return read_results(*arguments)

    monkeypatch.setattr(status, "read_results", read)
    return looks


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
    monkeypatch.setattr(status, "PAUSE_SECONDS", 0.01)
    submit(cluster)
    all_crash_at_look(2, cluster, monkeypatch)
    said = cluster.sweep("status", "--watch")
    assert said.status == 0
    assert "3 runs: 3 queued" in said.out
    assert "because" in said.out


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
    looks = all_crash_at_look(5, cluster, monkeypatch)
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
