"""The launcher of this machine, whose workers die, leave or cannot begin."""

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from slicedice.faults import DISK_FULL
from slicedice.launching import LaunchError
from slicedice.machine import Slot
from slicedice.store import Kind, RunState
from slicedice.store.kinds import MOST_FRUITLESS
from tests.doors.pool import Pool, add


@pytest.mark.parametrize("end", ["killed_once", "die early"])
def test_what_a_dead_worker_was_given_is_taken_up_one_by_one(end: str, pool: Pool, tiny):
    """One of them may have killed it, and the others need not suffer for that again."""
    pool.ids[:] = [add(pool.store, tiny({"seed": seed, "execution.lanes": 3})) for seed in range(10, 13)]
    pool.launch("done", end, "done", units=[[0, 1, 2]])
    lines = [tuple(pool.ids.index(run) for run in note["runs"]) for note in pool.notes("line")]
    tries = 2 if end == "killed_once" else MOST_FRUITLESS
    assert sorted(lines) == sorted([(0, 1, 2), (2,), *[(1,)] * (tries - 1)])
    assert pool.kinds == [Kind.DONE, Kind.DONE if end == "killed_once" else Kind.MISSING, Kind.DONE]


@pytest.fixture
def together(pool: Pool, tiny, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[int, ...]]]:
    """Has all runs given at once to the one worker that there is; which it was given, time after time."""
    monkeypatch.setattr(pool.local, "slots", lambda *_: [Slot(frozenset(), {})])
    pool.ids[:] = [add(pool.store, tiny({"seed": seed, "execution.lanes": 5})) for seed in range(10, 15)]
    return lambda: [tuple(pool.ids.index(run) for run in note["runs"]) for note in pool.notes("line")]


def test_what_a_dead_worker_had_not_begun_stays_together(pool: Pool, together):
    pool.launch("done", "killed_once", "done", "done", "done")
    assert together() == [(0, 1, 2, 3, 4), (2, 3, 4), (1,)]
    assert pool.kinds == [Kind.DONE] * 5


def test_deaths_before_its_turn_are_not_counted_against_a_run(pool: Pool, together, tiny):
    count = MOST_FRUITLESS + 2
    pool.ids[:] = [add(pool.store, tiny({"seed": 20 + i, "execution.lanes": count})) for i in range(count)]
    pool.launch(*["killed_once"] * (count - 1), "done")
    assert together()[0] == tuple(range(count))
    assert pool.kinds == [Kind.DONE] * count


def test_only_a_run_that_takes_its_worker_down_alone_has_crashed(pool: Pool, together, monkeypatch):
    """Of several that were trained at once, any may be at fault."""
    pool.launch("done", "beside", "aborts", "done", "done")
    assert together() == [(0, 1, 2, 3, 4), (3, 4), (1,), (2,)]
    first, last = (pool.store.run(pool.ids[2]).attempts()[i].ending() or pytest.fail("it ended") for i in (1, 0))
    assert (first.kind, last.kind) == (Kind.PREEMPTED, Kind.CRASHED)
    assert "2 runs" in first.reason
    assert pool.store.run(pool.ids[1]).failures() == {Kind.PREEMPTED: 1}


def test_what_was_told_to_stop_stays_together(pool: Pool, together):
    """As by a worker that someone ends with `kill`, one line after the other."""
    pool.launch("done", "told", "told", "done", "told")
    assert together() == [(0, 1, 2, 3, 4), (1, 2, 4)]
    assert pool.kinds == [Kind.DONE] * 5


def test_a_run_whose_worker_is_killed_is_trained_on_behind_the_others(pool: Pool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool.local, "slots", lambda *_: [Slot(frozenset(), {})])
    pool.launch("done", "killed_once", "done", "killed_once", "done")
    assert pool.kinds == [Kind.DONE] * 5
    order = [pool.ids.index(note["run"]) for note in pool.notes("given")]
    assert order == [0, 1, 2, 3, 4, 1, 3]
    assert pool.store.run(pool.ids[1]).failures() == {Kind.PREEMPTED: 1}
    assert pool.all_gone()


def test_a_run_that_kills_every_worker_is_given_up_and_takes_down_no_other(pool: Pool):
    pool.launch("done", "killed", "done", "killed", "done")
    assert pool.kinds == [Kind.DONE, Kind.CRASHED, Kind.DONE, Kind.CRASHED, Kind.DONE]
    assert "SIGKILL" in pool.states[1].reason
    assert f"{MOST_FRUITLESS} times" in pool.states[1].reason
    assert pool.all_gone()


def test_a_worker_that_exits_takes_down_its_run_and_no_other(pool: Pool):
    pool.launch(3, "done", 3, "done", "done")
    assert pool.kinds == [Kind.CRASHED, Kind.DONE, Kind.CRASHED, Kind.DONE, Kind.DONE]
    assert "3" in pool.states[0].reason
    assert "workers.log" in pool.states[0].reason
    assert (pool.store.root / "workers.log").read_text().count("I end with 3") == 2


def test_a_run_that_crashed_in_order_keeps_its_reason(pool: Pool):
    pool.launch("crashed", "done", "crashed", "done", "done")
    assert pool.kinds == [Kind.CRASHED, Kind.DONE, Kind.CRASHED, Kind.DONE, Kind.DONE]
    assert pool.states[0].reason == "its own"
    assert len(pool.notes("started")) == 2


def test_a_worker_killed_before_its_first_step_takes_down_its_run_alone(pool: Pool):
    pool.launch("die early", "done", "die early", "done", "done")
    assert [kind is Kind.DONE for kind in pool.kinds] == [False, True, False, True, True]
    tries = [note["run"] for note in pool.notes("given")]
    assert tries.count(pool.ids[0]) == tries.count(pool.ids[2]) == MOST_FRUITLESS


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted as Linux lists them")
def test_workers_that_are_gone_leave_no_file_open(pool: Pool):
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    gc.disable()
    try:
        pool.launch("done", "killed", "done", "killed", "done")
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


def test_a_worker_that_leaves_in_order_takes_down_no_run_it_never_began(pool: Pool, monkeypatch: pytest.MonkeyPatch):
    # Someone ends a worker with `kill`: it saves, says so and goes. The next run is not its fault.
    monkeypatch.setattr(pool.local, "slots", lambda *_: [Slot(frozenset(), {})])
    pool.launch("leave", "done", "done")
    assert pool.kinds[:3] == [Kind.DONE] * 3
    assert pool.store.run(pool.ids[0]).failures() == {Kind.PREEMPTED: 1}
    assert not pool.store.run(pool.ids[1]).failures()


def test_workers_that_cannot_begin_end_the_launch(pool: Pool):
    with pytest.raises(LaunchError, match="status 3") as caught:
        pool.launch(*["exit early"] * 5)
    assert "workers.log" in str(caught.value)
    # Nobody is blamed for what every run would have met.
    assert pool.kinds == [Kind.MISSING] * 5
    assert len(pool.notes("started")) <= 2
    assert pool.all_gone()


def test_a_full_disk_ends_the_launch_and_stops_the_others(pool: Pool):
    with pytest.raises(LaunchError, match="full") as caught:
        pool.launch("stuck", DISK_FULL, "done", "done", "done")
    assert str(pool.store.root) in str(caught.value)
    assert pool.kinds[2:] == [Kind.MISSING] * 3
    assert Kind.CRASHED not in pool.kinds
    assert pool.all_gone()


def test_the_signal_of_a_death_is_named(pool: Pool):
    pool.launch("killed_once")
    first = pool.store.run(pool.ids[0]).attempts()[-1]
    assert first.ending() == RunState(Kind.PREEMPTED, 0, f"its worker was killed by {signal.SIGKILL.name}")


def test_a_crash_that_no_worker_lives_to_tell_pauses_its_program(pool: Pool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool.local, "slots", lambda *_: [Slot(frozenset(), {})])
    pool.launch(3)
    second = pool.ids[1]
    state = pool.store.state(second, pool.store.read_spec(second), pool.store.run(second).execution())
    assert state.kind is Kind.PAUSED
