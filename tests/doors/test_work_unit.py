"""The worker on a work unit: which runs it trains, what it waits for, and what it ends with."""

import json
import os
import shutil
import signal
from collections.abc import Callable

import pytest

from slicedice import training, work
from slicedice.faults import AGAIN
from slicedice.store import Claim, Kind, Launch, RunFolder, RunState, attempt
from slicedice.store.launches import write_launch
from tests.doors.bench import MOE, Bench
from tests.store.clocks import Clock


def write_unit(bench: Bench, *runs: str) -> str:
    """A launch of one unit; returns what names it."""
    write_launch(Launch("mine-1", bench.store.launch_folder("mine-1"), "local", {}, (runs,)), {})
    return "mine-1/0"


def test_a_unit_trains_its_runs_and_says_when_it_is_to_be_started_again(bench: Bench, capsys):
    first, second = bench.add(), bench.add(**MOE)
    unit = write_unit(bench, first, second)
    bench.during = lambda folder: os.kill(os.getpid(), signal.SIGUSR1)
    bench.ends = [training.Stopped("stopped after step 3")]
    assert bench.main("--unit", unit) == AGAIN
    assert capsys.readouterr().out == f"{first} preempted\n"
    bench.during = lambda folder: None
    assert bench.main("--unit", unit) == 0
    assert capsys.readouterr().out == f"{first} done\n{second} done\n"
    assert bench.main("--unit", unit) == 0
    assert len(bench.calls) == 3


def test_a_unit_that_was_stopped_with_nothing_left_is_done(bench: Bench):
    run = bench.add()
    bench.during = lambda folder: os.kill(os.getpid(), signal.SIGTERM)
    assert bench.main("--unit", write_unit(bench, run)) == 0


@pytest.mark.parametrize("how", ["unit", "arguments"])
@pytest.mark.parametrize("damage", ["removed", "torn"])
def test_a_run_that_is_gone_does_not_keep_the_others_from_being_trained(bench: Bench, capsys, how: str, damage: str):
    runs = gone, *others = [bench.add(seed=seed) for seed in range(3)]
    if damage == "removed":
        shutil.rmtree(bench.store.run(gone).path)
    else:
        (bench.store.run(gone).path / "spec.json").write_text("{")
    unit = write_unit(bench, *runs)
    assert bench.main(*(["--unit", unit] if how == "unit" else runs)) == 1
    assert gone in capsys.readouterr().err
    assert {bench.store.run(run).state().kind for run in others} == {Kind.DONE}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for room in (attempt, work):
        monkeypatch.setattr(room, "time", clock)
    return clock


class Zombie:
    """Holds a run elsewhere, and gives signs of life for a while after the unit was started again beside it."""

    def __init__(self, folder: RunFolder, clock: Clock, seconds: float, at_last: Callable[[], object]):
        self.path, self.began, self.until = folder.path / "attempts" / "1", clock.now, clock.now + seconds
        self._clock, self._at_last = clock, at_last
        self.path.mkdir(parents=True)
        holder = {"host": "elsewhere", "machine": "another-boot", "pid": 1, "started": 5}
        (self.path / "claim.json").write_text(json.dumps({"holder": holder, "count": 0, "at": clock.now}))
        clock.meanwhile = self.live

    def live(self) -> None:
        if self._clock.now < self.until:
            count = int(self._clock.now - self.began) // 10
            (self.path / "beat.json").write_text(json.dumps({"count": count, "at": self._clock.now}))
        elif self.until:
            self._at_last()
            self.until = 0


@pytest.mark.parametrize("seconds", [1, 25, 100, 4000])
def test_a_unit_trains_what_a_zombie_holds_when_that_is_silent(bench: Bench, clock: Clock, capsys, seconds: int):
    """A unit that is started again beside its zombie: for the engine it is done when it says so, whatever happens."""
    first, held = bench.add(), bench.add(**MOE)
    Zombie(bench.store.run(held), clock, seconds, lambda: None)
    assert bench.main("--unit", write_unit(bench, held, first)) == 0
    assert bench.store.run(held).state() == RunState(Kind.DONE, 6)
    said = capsys.readouterr().out.splitlines()
    waiting = [f"waiting for others that hold {held}"] * (seconds > 10)
    assert said == [f"{held} passed_over", f"{first} done", *waiting, f"{held} done"]


def test_a_unit_leaves_what_another_process_finishes_while_it_waits(bench: Bench, clock: Clock):
    run = bench.add()
    finish = Claim(bench.store.run(run).path, 1).finish
    Zombie(bench.store.run(run), clock, 500, lambda: finish(Kind.DONE, {"steps": 6}))
    assert bench.main("--unit", write_unit(bench, run)) == 0
    assert bench.calls == []
    assert clock.now - 1e9 >= 500


def test_a_unit_that_waits_is_started_again_when_it_is_told_to_stop(bench: Bench, clock: Clock):
    run = bench.add()
    zombie = Zombie(bench.store.run(run), clock, 500, lambda: os.kill(os.getpid(), signal.SIGTERM))
    until = zombie.until
    assert bench.main("--unit", write_unit(bench, run)) == AGAIN
    assert bench.calls == []
    assert until <= clock.now <= until + 2


@pytest.mark.parametrize(
    ("unit", "valid"), [("mine-1/1", "0 to 0"), ("mine-1/x", "0 to 0"), ("yours-1/0", "mine-1"), ("mine-1", "mine-1")]
)
def test_a_unit_that_is_none_is_told(bench: Bench, capsys, unit: str, valid: str):
    write_unit(bench, bench.add())
    assert bench.main("--unit", unit) == 1
    assert valid in capsys.readouterr().err
