"""The launcher of this machine: whom it starts, with what, and how it stops them."""

import json
import os
from dataclasses import replace

import pytest

from slicedice.launching import Job, Phase, WorkUnit
from slicedice.machine import Slot
from slicedice.spec import SCHEMA
from slicedice.store import Kind, Launch
from slicedice.store.holder import Holder
from tests.doors.pool import Pool


def test_every_run_is_trained_once_by_as_many_workers_as_there_are_slots(pool: Pool):
    pool.launch(*["done"] * 5)
    assert pool.kinds == [Kind.DONE] * 5
    assert sorted(note["run"] for note in pool.notes("given")) == sorted(pool.ids)
    assert len(pool.notes("started")) == 2
    assert len(pool.notes("ended")) == 2
    assert pool.watched > 0
    assert pool.all_gone()


def test_workers_in_which_libraries_talk_are_understood(pool: Pool):
    pool.launch("talkative", "halting", "halting", "talkative", "talkative")
    assert pool.kinds == [Kind.DONE] * 5
    assert len(pool.notes("started")) == 2


def test_no_more_workers_are_started_than_there_are_runs(pool: Pool):
    pool.launch("done")
    assert pool.kinds == [Kind.DONE] + [Kind.MISSING] * 4
    assert len(pool.notes("started")) == 1


def test_nothing_to_train_is_no_worker(pool: Pool):
    pool.launch()
    assert pool.notes("started") == []


def test_workers_are_started_as_the_protocol_says(pool: Pool):
    pool.launch("done", "done", "done")
    for note in pool.notes("started"):
        expected = ["-m", "slicedice.work", "--store", pool.store.address, "--parent", str(os.getpid())]
        assert note["argv"] == expected
    assert {note["test"] for note in pool.notes("started")} == {"0", "1"}


def test_the_order_is_that_of_the_job(pool: Pool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool.local, "slots", lambda *_: [Slot(frozenset(), {})])
    pool.launch(*["done"] * 5)
    assert [note["run"] for note in pool.notes("given")] == pool.ids


def test_the_launcher_asks_for_the_slots_that_the_job_allows(pool: Pool, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(pool.local, "slots", lambda *wanted: asked.append(wanted) or [Slot(frozenset(), {})])
    behaviour = {"schema": SCHEMA, "machine": Holder.here().machine}
    (pool.folder / "behaviour.json").write_text(json.dumps(behaviour))
    pool.launcher.attend(Job("mine-1", pool.store, (WorkUnit(tuple(pool.ids[:1])),), 3, 7, 2))
    assert asked == [(3, 7, 2)]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
def test_workers_run_on_the_cores_of_their_slot_and_the_launcher_keeps_its_own(pool: Pool, monkeypatch):
    before = os.sched_getaffinity(0)
    slots = [Slot(frozenset([core]), {}) for core in sorted(before)[:2]]
    monkeypatch.setattr(pool.local, "slots", lambda *_: slots)
    pool.launch(*["done"] * 4)
    assert sorted(note["cores"] for note in pool.notes("started")) == [list(slot.cores) for slot in slots]
    assert os.sched_getaffinity(0) == before


def test_ctrl_c_stops_workers_in_order(pool: Pool):
    def watch() -> None:
        if len(pool.notes("stuck")) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.launch("stuck", "stuck", "done", watch=watch)
    assert sorted(note["run"] for note in pool.notes("stopped")) == sorted(pool.ids[:2])
    assert pool.kinds[2] is Kind.MISSING
    assert pool.all_gone()


def test_workers_that_do_not_stop_are_killed(pool: Pool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool.local, "GRACE_SECONDS", 0.1)

    def watch() -> None:
        if pool.notes("stuck"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.launch("deaf", watch=watch)
    assert len(pool.notes("stopped")) == 1
    assert pool.all_gone()


def test_a_worker_with_more_runs_has_more_time_to_save_them(pool: Pool, monkeypatch: pytest.MonkeyPatch):
    waited = {}

    class Deaf:
        """A worker that ends when it is killed."""

        def __init__(self, runs: int):
            self.runs, self.process = [""] * runs, self
            self.send_signal = self.close = self.end = self.kill = lambda *_: None

        def wait(self, seconds: float) -> None:
            waited[len(self.runs)] = seconds

    monkeypatch.setattr(pool.local.time, "monotonic", lambda: 7.0)
    pool.local._stop({Deaf(runs) for runs in (0, 1, 9)})
    assert waited == {0: 60.0, 1: 60.0, 9: 100.0}


def test_a_worker_is_out_of_reach_of_the_terminals_signals(pool: Pool, monkeypatch: pytest.MonkeyPatch):
    # Ctrl-C reaches the whole group of the terminal: the launcher stops its workers in order instead.
    groups = []

    def watch() -> None:
        if pool.notes("stuck"):
            groups.append(os.getpgid(pool.notes("stuck")[0]["pid"]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.launch("stuck", watch=watch)
    assert groups
    assert groups[0] != os.getpgid(0)


def test_what_would_be_started_is_said(pool: Pool):
    job = Job("mine-1", pool.store, (WorkUnit(tuple(pool.ids[:2])),))
    ((name, text),) = pool.launcher.render(job).items()
    assert name == "workers.sh"
    for slot in range(2):
        assert f"SLOT={slot} " in text
    assert text.count(f"-m slicedice.work --store {pool.store.address} --parent $$") == 2
    assert pool.ids[1] in text


def test_its_queue_lives_as_long_as_the_sweep(pool: Pool):
    job = Job("mine-1", pool.store, (WorkUnit(tuple(pool.ids[:2])),))
    handles = tuple(pool.launcher.submit(job, {}))
    launch = Launch("mine-1", pool.folder, "local", {}, (tuple(pool.ids[:2]),), handles)
    assert list(pool.launcher.poll(launch)) == [Phase.QUEUED]
    machine, pid, started = handles[0].split(":")
    for gone in (f"{machine}:{pid}:{int(started) + 1}", f"elsewhere:{pid}:{started}", "odd"):
        assert list(pool.launcher.poll(replace(launch, handles=(gone,)))) == [Phase.ENDED]
