"""Progress: what it counts, and when it thinks all will be done."""

import contextlib
import io
from collections.abc import Iterable
from typing import Any

import pytest
from rich.console import Console

from slicedice.grid import Plan
from slicedice.report.progress import PLAIN_SECONDS, Progress
from slicedice.spec import run_name
from slicedice.store import Kind, RunState

STEPS = 6


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class States(dict[str, RunState]):
    """Stands for a store that knows states alone, and remembers who was asked for."""

    def __init__(self, **kinds: RunState):
        super().__init__(kinds)
        self.asked: list[str] = []

    def look(self, runs: Iterable[str]) -> dict[str, tuple[RunState, None]]:
        self.asked += runs
        return {id_: (self[id_], None) for id_ in runs}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("slicedice.report.progress.time.monotonic", clock)
    return clock


@pytest.fixture
def begin(tiny, clock: Clock):
    """A progress of tiny runs with the given states, and what it prints."""
    spec, execution = tiny()
    assert spec.budget.steps == STEPS

    def make(states: States, **console: Any) -> tuple[Progress, io.StringIO]:
        file = io.StringIO()
        plan = Plan(dict.fromkeys(states, (spec, execution)))
        return Progress(states, plan, list(states), Console(file=file, width=160, **console)), file  # pyright: ignore

    return make


def test_time_to_go_is_the_steps_left_at_the_rate_so_far(begin, clock: Clock):
    states = States(a=RunState(Kind.PREEMPTED, 2), b=RunState(Kind.MISSING), c=RunState(Kind.MISSING))
    progress, _ = begin(states)
    assert progress.remaining() is None
    clock.now += 10
    progress.watch()
    assert progress.remaining() is None  # not forever, and not zero: there is no rate yet
    states |= {"a": RunState(Kind.RUNNING, 4), "b": RunState(Kind.RUNNING, 1)}
    clock.now += 20
    progress.watch()
    # Three steps in 30 seconds, not five: two were there before. Of 18 steps, 13 are left.
    assert progress.remaining() == pytest.approx(130)


def test_nothing_is_to_go_when_every_run_has_ended(begin, clock: Clock):
    states = States(a=RunState(Kind.MISSING), b=RunState(Kind.MISSING), c=RunState(Kind.MISSING))
    progress, _ = begin(states)
    clock.now += 10
    ended = {"a": RunState(Kind.DONE, STEPS), "b": RunState(Kind.DIVERGED, 2), "c": RunState(Kind.CRASHED, 3, "x")}
    states |= ended
    progress.watch()
    assert progress.remaining() == 0


def test_a_line_counts_every_state(begin, clock: Clock):
    states = States(
        a=RunState(Kind.MISSING), b=RunState(Kind.MISSING), c=RunState(Kind.MISSING), d=RunState(Kind.MISSING)
    )
    progress, file = begin(states)
    clock.now += 60
    states |= {"a": RunState(Kind.DONE, STEPS), "b": RunState(Kind.RUNNING, 3), "c": RunState(Kind.CRASHED, 0, "x")}
    with progress:
        progress.watch()
    (line,) = file.getvalue().splitlines()
    assert "4 runs: 1 missing, 1 running, 1 done, 1 crashed;" in line
    assert "0:01:00 so far" in line


def test_a_line_is_printed_now_and_then(begin, clock: Clock):
    progress, file = begin(States(a=RunState(Kind.MISSING)))
    for seconds, count in ((0, 1), (0.5, 1), (PLAIN_SECONDS - 1, 1), (1, 2), (1, 2), (PLAIN_SECONDS, 3)):
        clock.now += seconds
        progress.watch()
        assert file.getvalue().count("\n") == count


def test_runs_with_a_result_are_not_read_again(begin):
    states = States(a=RunState(Kind.DONE, STEPS), b=RunState(Kind.MISSING), c=RunState(Kind.CRASHED, 1, "x"))
    progress, _ = begin(states)
    states.asked.clear()
    states["b"] = RunState(Kind.DIVERGED, 3)
    progress.watch()
    assert states.asked == ["b", "c"]
    progress.watch()
    assert states.asked == ["b", "c", "c"]


def test_a_terminal_shows_the_runs_that_train(begin, tiny):
    states = States(a=RunState(Kind.RUNNING, 3), b=RunState(Kind.MISSING), c=RunState(Kind.RUNNING, 0))
    progress, _ = begin(states, force_terminal=True)
    shown = io.StringIO()
    Console(file=shown, width=160).print(progress._table())
    *rows, line = shown.getvalue().splitlines()
    assert all(row.startswith(run_name(tiny()[0])) for row in rows)
    assert [(row.count("━"), row.count("─")) for row in rows] == [(12, 12), (0, 24)]
    assert f"step 3 of {STEPS}" in rows[0]
    assert line.strip().startswith("3 runs: 1 missing, 2 running")


def test_a_terminal_is_left_as_it_was(begin):
    progress, file = begin(States(a=RunState(Kind.RUNNING, 3)), force_terminal=True, color_system=None)
    with contextlib.suppress(KeyboardInterrupt), progress:
        progress.watch()
        assert "step 3 of 6" in file.getvalue()
        raise KeyboardInterrupt
    # The cursor was hidden, and is back.
    assert file.getvalue().rfind("\x1b[?25h") > file.getvalue().rfind("\x1b[?25l") >= 0
