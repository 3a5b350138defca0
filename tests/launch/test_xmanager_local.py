# pyright: reportMissingImports=false
"""Sweeps through XManager on this machine, as a user runs them: by its command, and by the sweep door."""

import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from slicedice import files
from slicedice.launching import Job, LaunchError, WorkUnit, load_launcher
from slicedice.store import Kind, RunState, Store

pytestmark = pytest.mark.skipif(importlib.util.find_spec("xmanager") is None, reason="needs the extra `xmanager`")

GRID = '''"""Two learning rates."""
from slicedice.grid import Grid, axis

def get_grid(scale):
    return Grid(axis("optimizer.learning_rate", [1e-3, 4e-3]), seeds=1)
'''

SCRIPT = files.find("launch", "xmanager").parent / "xm_sweep.py"
DOOR = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from slicedice.sweep import main; "
)


class Sweep:
    """Ways to start the same sweep, in a folder with its text and grid."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.store = folder / "it's my $HOME"  # nothing to write into a shell as it is
        self.environment = {**os.environ, "HOME": str(folder / "home"), "JAX_PLATFORMS": "cpu"}
        # As tests set it for themselves, which share one process.
        self.environment.pop("JAX_NUM_CPU_DEVICES", None)
        (folder / "texts").mkdir()
        for number in range(12):
            (folder / "texts" / f"{number}.txt").write_text(f"document {number} says abc " * 40)
        (folder / "two.py").write_text(GRID)

    def arguments(self, tokens: int) -> list[str]:
        return [
            "--grid=./two.py", "--scale=smoke", f"--store={self.store}", "--config.data.source=texts",
            f"--config.budget.tokens={tokens}", "--config.execution.checkpoint_seconds=0.1",
        ]  # fmt: skip

    def command(self, *more: str) -> subprocess.CompletedProcess[str]:
        """Runs the `xmanager` command with the launch script."""
        xmanager = Path(sys.executable).parent / "xmanager"
        words = [xmanager, "launch", SCRIPT, "--", *self.arguments(10 * 8 * 32), *more]
        return subprocess.run(
            words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )

    def door(self, tokens: int, *more: str) -> subprocess.Popen[str]:
        """Starts the sweep door."""
        words = [*self.arguments(tokens), "--launcher", "xmanager", *more]
        return subprocess.Popen(
            [sys.executable, "-c", f"{DOOR}sys.exit(main({words!r}))"],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def states(self) -> list[RunState]:
        store = Store(self.store)
        return [store.run(id_).state() for id_ in store.ids()]

    def experiments(self) -> list[tuple[str, int]]:
        """Titles in XManager's database, each with how many work units it has."""
        found = sqlite3.connect(self.folder / "home" / ".xmanager" / "experiments.sqlite3")
        try:
            return found.execute(
                "SELECT experiment_title, COUNT(work_unit_id) FROM experiment "
                "LEFT JOIN work_unit USING (experiment_id) GROUP BY experiment_id ORDER BY experiment_id"
            ).fetchall()
        finally:
            found.close()


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


def test_the_command_trains_a_sweep_as_one_experiment(sweep: Sweep):
    done = sweep.command()
    assert done.returncode == 0, done.stdout + done.stderr
    assert [state.kind for state in sweep.states()] == [Kind.DONE] * 2
    [launch] = Store(sweep.store).launches()
    assert launch.launcher == "xmanager"
    assert sweep.experiments() == [(launch.name, 2)]
    rendered = json.loads((launch.folder / "experiment.json").read_text())
    assert [unit["tags"][1:] for unit in rendered["work_units"]] == [list(unit) for unit in launch.units]
    for number, unit in enumerate(launch.units):
        assert f"{unit[0]} done" in (launch.folder / f"unit-{number}.log").read_text()
        assert load_launcher("xmanager", {}).logs(launch, number)

    # Nothing is left to train; what a program is to read holds nothing of XManager's.
    again = sweep.command("--json")
    assert again.returncode == 0, again.stderr
    assert [row["state"] for row in json.loads(again.stdout)["runs"]] == ["done"] * 2
    assert len(sweep.experiments()) == 1


def await_(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Returns when it holds; the test fails when the process ends before."""
    deadline = time.monotonic() + 240
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail("\n".join(process.communicate()))
        time.sleep(0.05)


def test_ctrl_c_has_the_workers_save_and_end(sweep: Sweep):
    process = sweep.door(10_000 * 8 * 32, "--max_concurrent", "1", "--json")
    try:
        await_(lambda: sweep.store.exists() and any(state.steps > 20 for state in sweep.states()), process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    states = sweep.states()
    assert sorted(state.kind for state in states) == [Kind.MISSING, Kind.PREEMPTED], err
    store = Store(sweep.store)
    [begun] = [store.run(id_) for id_ in store.ids() if store.run(id_).state().kind is Kind.PREEMPTED]
    attempt = begun.attempts()[0]
    assert attempt.holder is not None
    assert attempt.holder.is_gone()
    assert attempt.ending() is not None  # it said itself how it ended, so that it was let
    assert any((attempt.checkpoints / "training").glob("[0-9]*"))
    [launch] = store.launches()
    assert sweep.experiments() == [(launch.name, 1)]  # one at a time


@pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")  # XManager's, of Alembic
def test_a_worker_that_cannot_work_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from xmanager.xm_local import execution
    from xmanager.xm_local.storage import database

    monkeypatch.setenv("HOME", str(tmp_path))
    for cached in (database.database, database.db_settings):
        cached.cache_clear()
    store = Store(tmp_path / "runs").create()
    # This launch is not on record, as of a store that is not the one that was meant.
    job = Job("grid-1", store, tuple(WorkUnit((12 * digit,)) for digit in "01"), max_concurrent=1)
    store.launch_folder(job.name).mkdir(parents=True)
    with pytest.raises(LaunchError, match="Work unit 0 ended with status 1") as caught:
        load_launcher("xmanager", {}).attend(job)  # type: ignore[attr-defined]
    database.database().engine.dispose()
    database.database.cache_clear()
    execution._local_jobs.clear()
    log = store.launch_folder(job.name) / "unit-0.log"
    assert str(log) in str(caught.value)
    assert "name a launch of" in log.read_text()
    assert not (store.launch_folder(job.name) / "unit-1.log").exists()  # which would fare no better
