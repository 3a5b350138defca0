"""How many workers share this machine's cores: what is measured decides, and goes on deciding."""

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from slicedice import machine
from slicedice.grid import Plan
from slicedice.launching import cores
from slicedice.launching.cores import Run, choose, measured_speed, workers_that_pay
from slicedice.machine import WORKER_BYTES, Slot, slots
from slicedice.spec import run_id

LONG = {"budget.tokens": 2**36}
"""A run that takes days."""


class Clock:
    """Measures what it was told, and remembers of what."""

    def __init__(self, **speeds: float | None):
        self.speeds = {int(count.removeprefix("w")): speed for count, speed in speeds.items()}
        self.asked: list[tuple[Run, Sequence[Slot]]] = []

    def __call__(self, run: Run, places: Sequence[Slot]) -> float | None:
        self.asked.append((run, places))
        return self.speeds[len(places)]


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Four cores, memory for as many workers, and a cache folder that is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "has_accelerator", lambda: False)
    have(monkeypatch, 4)


def have(monkeypatch: pytest.MonkeyPatch, count: int, workers: float = 100) -> None:
    monkeypatch.setattr(machine, "cores", lambda: list(range(count)))
    monkeypatch.setattr(machine, "memory", lambda: int(workers * WORKER_BYTES))


@pytest.fixture
def planned(tiny):
    """A plan of runs with the given fields."""

    def made(*fields: dict) -> Plan:
        runs = [tiny({**LONG, **own}) for own in fields or ({},)]
        return Plan({run_id(run[0]): run for run in runs})

    return made


@pytest.mark.parametrize(
    ("speeds", "chosen"),
    [
        ({1: 100.0, 2: 180.0, 4: 300.0}, 4),
        ({1: 100.0, 2: 180.0, 4: 120.0}, 2),
        ({1: 300.0, 2: 180.0, 4: 120.0}, 1),
        ({1: 100.0, 2: 180.0, 4: 172.0}, 4),  # hardly slower
        ({1: 100.0, 2: 180.0, 4: 170.0}, 2),
        ({1: 184.0, 2: 180.0, 4: 172.0}, 2),
        ({2: 1.0}, 2),
    ],
)
def test_the_fastest_is_chosen_and_of_those_alike_the_most_workers(speeds: dict[int, float], chosen: int):
    assert choose(speeds) == chosen


def test_candidates_share_all_cores_out_and_take_the_environment_of_workers(planned):
    clock = Clock(w1=1.0, w2=3.0, w4=2.0)
    assert workers_that_pay(planned(), measure=clock) == 2
    assert [places for _, places in clock.asked] == [slots(1), slots(2), slots(4)]


def test_there_are_no_more_workers_than_memory_holds(planned, monkeypatch: pytest.MonkeyPatch):
    have(monkeypatch, 8, workers=3)
    clock = Clock(w1=1.0, w2=2.0, w3=3.0)
    assert workers_that_pay(planned(), measure=clock) == 3
    assert [len(places) for _, places in clock.asked] == [1, 2, 3]


def test_the_program_whose_step_computes_most_is_measured(planned):
    plan = planned({}, {"model.d_model": 32}, {"budget.tokens": 2**38})
    clock = Clock(w1=1.0, w2=1.0, w4=1.0)
    workers_that_pay(plan, measure=clock)
    assert {run[0].model.d_model for run, _ in clock.asked} == {32}


def test_what_fails_is_no_candidate_and_if_all_do_nothing_is_chosen(planned):
    assert workers_that_pay(planned(), measure=Clock(w1=2.0, w2=1.0, w4=None)) == 1
    other = planned({"model.d_model": 32})
    assert workers_that_pay(other, measure=Clock(w1=None, w2=None, w4=None)) == 0
    assert workers_that_pay(other, measure=Clock(w1=1.0, w2=2.0, w4=None)) == 2


def test_what_was_measured_is_told_and_kept(planned, tmp_path: Path):
    said = []
    assert workers_that_pay(planned(), said.append, Clock(w1=1000.0, w2=3000.0, w4=2000.0)) == 2
    assert "1 1,000, 2 3,000, 4 2,000. 2 are used" in said[-1]
    (path,) = (tmp_path / "cache").rglob("*.json")
    assert f"Remove {path} to" in said[-1]
    again = []
    assert workers_that_pay(planned({"seed": 7}), again.append, Clock()) == 2
    assert again == said[-1:]
    assert workers_that_pay(planned()) == 2
    path.unlink()
    assert workers_that_pay(planned(), measure=Clock(w1=3.0, w2=1.0, w4=1.0)) == 1


def test_another_program_or_machine_is_measured_anew(planned, monkeypatch: pytest.MonkeyPatch):
    assert workers_that_pay(planned(), measure=Clock(w1=2.0, w2=1.0, w4=1.0)) == 1
    assert workers_that_pay(planned({"model.d_model": 32}), measure=Clock(w1=1.0, w2=2.0, w4=1.0)) == 2
    monkeypatch.setattr(cores, "processor", lambda: "a faster one")
    assert workers_that_pay(planned(), measure=Clock(w1=1.0, w2=1.0, w4=2.0)) == 4
    have(monkeypatch, 2)
    assert workers_that_pay(planned(), measure=Clock(w1=1.0, w2=2.0)) == 2


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", "7", '{"3": 1}', '{"1": NaN}', '{"1": -5, "2": 4}', '{"1": null}', '{"one": 1}']
)
def test_what_is_kept_and_damaged_is_measured_again(planned, text: str, tmp_path: Path):
    assert workers_that_pay(planned(), measure=Clock(w1=2.0, w2=1.0, w4=1.0)) == 1
    (path,) = (tmp_path / "cache").rglob("*.json")
    path.write_text(text)
    assert workers_that_pay(planned()) == 0
    assert workers_that_pay(planned(), measure=Clock(w1=1.0, w2=1.0, w4=2.0)) == 4
    assert workers_that_pay(planned()) == 4


def test_what_cannot_be_kept_is_not_measured(planned, tmp_path: Path):
    """The same command would choose otherwise the next time, and take runs up again with other threads."""
    (tmp_path / "cache").write_text("a file")
    assert workers_that_pay(planned(), measure=Clock()) == 0


@pytest.mark.parametrize("reason", ["accelerator", "one core", "memory for one", "too little to train"])
def test_nothing_is_measured_where_that_is_for_nothing(planned, reason: str, monkeypatch: pytest.MonkeyPatch):
    plan = planned({"budget.tokens": 60 * 8 * 16} if reason == "too little to train" else {})
    if reason == "accelerator":
        monkeypatch.setattr(machine, "has_accelerator", lambda: True)
    have(monkeypatch, 1 if reason == "one core" else 4, 1 if reason == "memory for one" else 100)
    assert workers_that_pay(plan, pytest.fail, Clock()) == 0


def test_measuring_is_worth_a_tenth_of_the_training(planned, monkeypatch: pytest.MonkeyPatch):
    plan = planned()
    (run,) = plan.runs.values()
    monkeypatch.setattr(cores, "STEPS", 0)
    training = run[0].flops / cores.RATES["cpu"].sustained / 4
    for share, most, worth in ((0.099, 1.0, True), (0.101, 1.0, False), (0.05, 0.051, True), (0.05, 0.049, False)):
        monkeypatch.setattr(cores, "START_SECONDS", share * training / 3)
        monkeypatch.setattr(cores, "MOST_SECONDS", most * training)
        assert cores.is_worth_it(plan, 3) is worth


def test_real_workers_are_measured(tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    monkeypatch.undo()  # the cores and the cache that there are
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    speed = measured_speed(tiny(), slots(2))
    assert speed is not None
    assert 0 < speed < math.inf
    assert caplog.messages == []


def test_a_worker_that_fails_says_why(tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    words = "import sys; sys.stdin.readline(); sys.exit('no room at all')"
    monkeypatch.setattr(cores, "COMMAND", [sys.executable, "-c", words])
    assert measured_speed(tiny(), [Slot(frozenset(), {})] * 2) is None
    assert "2 workers are not considered: no room at all" in caplog.text


def test_speeds_are_added_up(tiny, monkeypatch: pytest.MonkeyPatch):
    words = (
        "import json; input(); print('a library talks'); print('ready', flush=True); input(); "
        "print(json.dumps({'steps': 10, 'seconds': 4.0}))"
    )
    monkeypatch.setattr(cores, "COMMAND", [sys.executable, "-c", words])
    run = tiny()
    assert measured_speed(run, [Slot(frozenset(), {})] * 3) == pytest.approx(3 * 8 * 16 * 10 / 4)


def test_workers_end_with_the_sweep_that_measures(tiny, monkeypatch: pytest.MonkeyPatch):
    started, popen = [], subprocess.Popen

    def watched(*arguments, **settings):
        started.append(popen(*arguments, **settings))
        return started[-1]

    def interrupt(child):
        raise KeyboardInterrupt

    monkeypatch.setattr(cores, "COMMAND", [sys.executable, "-c", "import time; time.sleep(600)"])
    monkeypatch.setattr(cores.subprocess, "Popen", watched)
    monkeypatch.setattr(cores, "_ready", interrupt)
    with pytest.raises(KeyboardInterrupt):
        measured_speed(tiny(), [Slot(frozenset(), {})] * 2)
    assert [child.poll() is not None for child in started] == [True, True]
