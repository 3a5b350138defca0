"""Drawing in several processes: what they draw is what one would, however they end."""

import hashlib
import subprocess
from pathlib import Path

import numpy as np
import pytest

from slicedice import machine
from slicedice.grid import Figure, Panel
from slicedice.report import drawing
from slicedice.report.drawing import FIGURES_A_PROCESS, Task, draw_all

POINTS = [{}, *({"model.experts": f"n={n} g={g}"} for n in (4, 8) for g in ("1/2", "1/4"))]


@pytest.fixture
def rows(row_of, rng: np.random.Generator) -> list[dict]:
    """Two seeds of some cells, of which figures read the first: noise is known from what they do not read."""
    return [row_of({**p, "seed": seed}, loss=float(rng.normal(3, 0.1))) for seed in (0, 1) for p in POINTS]


@pytest.fixture
def tasks(rows, tmp_path: Path) -> list[Task]:
    """Enough for two processes, the largest not first."""
    panels = (Panel("", "g", "n"),)
    return [
        Task(Figure(f"figure_{i}", f"Figure {i}", panels), rows[: 3 + i % 3], tmp_path)
        for i in range(2 * FIGURES_A_PROCESS)
    ]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen]:
    """The processes that are begun."""
    found: list[subprocess.Popen] = []
    begin = subprocess.Popen

    def remembered(*args, **more):
        found.append(begin(*args, **more))
        return found[-1]

    monkeypatch.setattr(subprocess, "Popen", remembered)
    return found


def taken(tasks: list[Task]) -> dict[str, str]:
    """Digests of what was drawn, which is taken away."""
    found = {}
    for file in (file for task in tasks for file in task.files):
        found[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
        file.unlink()
    return found


@pytest.fixture
def alone(tasks, rows, started, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Digests of what one core draws."""
    monkeypatch.setattr(machine, "cores", lambda: [0])
    draw_all(tasks, rows)
    assert started == []
    assert "within noise of dense" in tasks[0].files[1].read_text()
    return taken(tasks)


def test_processes_draw_the_same_files_as_one_does(alone, tasks, rows, started, monkeypatch: pytest.MonkeyPatch):
    here, own = [], drawing.draw
    monkeypatch.setattr(machine, "cores", lambda: [0, 1])
    monkeypatch.setattr(drawing, "draw", lambda figure, *more: [here.append(figure.name), own(figure, *more)])
    draw_all(tasks, rows)
    assert taken(tasks) == alone
    assert len(alone) == 2 * len(tasks)
    assert [process.returncode for process in started] == [0]
    assert len(here) == len(tasks) / 2, "the other process draws the other half"


@pytest.mark.parametrize("command", ["false", "cat"])
def test_what_a_process_does_not_draw_is_drawn_here(
    alone, tasks, rows, started, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str
):
    # One dies before it reads anything, one after it has read all.
    broken = tmp_path / "python"
    broken.write_text(f"#!/bin/sh\n{'cat > /dev/null; ' if command == 'cat' else ''}exit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(machine, "cores", lambda: [0, 1])
    monkeypatch.setattr(drawing.sys, "executable", str(broken))
    # More than a pipe holds: writing it must not wait for one that is gone.
    draw_all(tasks, rows + [{**rows[0], "state": "missing", "reason": f"{i:1000}"} for i in range(1000)])
    assert [process.returncode for process in started] == [3]
    assert taken(tasks) == alone


def test_few_figures_are_drawn_without_processes(tasks, rows, started, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "cores", lambda: list(range(64)))
    draw_all(tasks[:-1], rows)
    assert started == []
    assert len(taken(tasks[:-1])) == 2 * (len(tasks) - 1)


def test_no_process_outlives_who_asked_for_it(tasks, rows, started, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(machine, "cores", lambda: [0, 1])
    monkeypatch.setattr(drawing, "draw", interrupted)
    with pytest.raises(KeyboardInterrupt):
        draw_all(tasks, rows)
    assert [process.poll() is not None for process in started] == [True]
