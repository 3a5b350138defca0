"""The command, as a user runs it: a sweep that is killed and interrupted ends as one that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
import pyarrow.parquet
import pytest

from slicedice.store import Kind, RunFolder, Store

GRID = '''"""Three layers that share nothing."""
from slicedice.grid import Grid, axis

def get_grid(scale):
    return Grid(axis("model.experts", ["dense", "n=4 g=1/2", "n=8 g=1/2"]))
'''


def command(folder: Path, *arguments: str) -> list[str]:
    (folder / "three.py").write_text(GRID)
    settings = ["--config.budget.tokens=51200", "--config.execution.checkpoint_seconds=0.1"]
    return [sys.executable, "-m", "slicedice.sweep", "--grid", "./three.py", "--scale", "smoke", *settings, *arguments]


def start(folder: Path) -> subprocess.Popen:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command(folder, "--max_concurrent", "2"), cwd=folder, env=environment, text=True, stdout=-1, stderr=-1
    )


def finish(process: subprocess.Popen) -> str:
    output, errors = process.communicate(timeout=300)
    return f"exit {process.returncode}\n{output}\n{errors}"


def runs(folder: Path) -> list[RunFolder]:
    return [RunFolder(path) for path in sorted((folder / "runs" / "runs").iterdir())]


def wait_for_a_run_in_the_middle(folder: Path, process: subprocess.Popen) -> None:
    """Returns when some run has a checkpoint and is still training."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        for run in runs(folder) if (folder / "runs" / "runs").exists() else []:
            state = run.state()
            if state.kind is Kind.RUNNING and 20 < state.steps < 180 and run.attempt().has_checkpoint:
                return
        time.sleep(0.01)
    pytest.fail("no run was seen in the middle:\n" + finish(process))


def workers(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def trained(run: RunFolder) -> dict:
    with ocp.StandardCheckpointer() as reader:
        return {name: np.asarray(leaf) for name, leaf in reader.restore(run.attempt().checkpoints / "model").items()}


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds workers in /proc")
def test_a_killed_and_interrupted_sweep_ends_bitwise_equal_to_an_undisturbed_one(tmp_path):
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    calm.mkdir()
    stormy.mkdir()

    process = start(calm)
    output = finish(process)
    assert process.returncode == 0, output

    process = start(stormy)
    wait_for_a_run_in_the_middle(stormy, process)
    # Both workers die, and what they were training is taken up again at the end.
    for pid in workers(process):
        os.kill(pid, signal.SIGKILL)
    wait_for_a_run_in_the_middle_or_end(stormy, process)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        output = finish(process)
        assert process.returncode in (0, 130), output

    process = start(stormy)
    output = finish(process)
    assert process.returncode == 0, output
    assert sum(run.failures().get(Kind.PREEMPTED, 0) for run in runs(stormy)) >= 2

    assert [run.path.name for run in runs(calm)] == [run.path.name for run in runs(stormy)]
    for undisturbed, disturbed in zip(runs(calm), runs(stormy), strict=True):
        first, second = undisturbed.result(), disturbed.result()
        assert first is not None
        assert second is not None
        assert first["kind"] == second["kind"] == Kind.DONE
        for part in ("steps", "train", "evaluation"):
            assert first[part] == second[part]
        assert undisturbed.attempt().metrics.read_bytes() == disturbed.attempt().metrics.read_bytes()
        leaves, others = trained(undisturbed), trained(disturbed)
        assert leaves.keys() == others.keys()
        for name in leaves:
            np.testing.assert_array_equal(leaves[name], others[name], err_msg=name)

    (report,) = (stormy / "runs" / "reports").iterdir()
    table = pyarrow.parquet.read_table(report / "results.parquet")
    assert table["state"].to_pylist() == ["done"] * 3
    assert (report / "index.html").stat().st_size > 1000


def wait_for_a_run_in_the_middle_or_end(folder: Path, process: subprocess.Popen) -> None:
    """Returns when some run is training past its first steps, or when the sweep has ended."""
    before = {run.path.name: run.state().steps for run in runs(folder)}
    while process.poll() is None:
        states = {run.path.name: run.state() for run in runs(folder)}
        if any(state.kind is Kind.RUNNING and state.steps > before[name] for name, state in states.items()):
            return
        time.sleep(0.01)


def test_runs_that_crash_are_kept_with_their_logs_and_not_tried_again_unasked(tmp_path):
    # A corpus that is too short for one batch's window crashes in the worker, not before it.
    text = tmp_path / "text"
    text.mkdir()
    for i in range(4):
        (text / f"{i}.txt").write_text(f"document {i} ".ljust(40, "."))
    arguments = ["--config.data.source=text", "--config.data.sequence_length=512", "--config.budget.tokens=81920"]
    done = subprocess.run(command(tmp_path, *arguments), cwd=tmp_path, text=True, capture_output=True, timeout=300)
    assert done.returncode == 1, done.stderr
    store = Store(tmp_path / "runs")
    states = [RunFolder(path).state() for path in (store.root / "runs").iterdir()]
    assert [state.kind for state in states] == [Kind.CRASHED] * 3
    assert all("sequence length" in state.reason for state in states)
    logs = [(path / "log.txt").read_text() for path in (store.root / "runs").iterdir()]
    assert all("Traceback" in log for log in logs)
    again = subprocess.run(command(tmp_path, *arguments), cwd=tmp_path, text=True, capture_output=True, timeout=60)
    assert again.returncode == 1
    assert [(path / "log.txt").read_text() for path in (store.root / "runs").iterdir()] == logs
