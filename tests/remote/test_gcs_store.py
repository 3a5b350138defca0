"""Sweeps in a bucket, as users run them: the same results as in a folder, whatever is killed on the way."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

import slicedice
from slicedice import evaluate, export, sweep
from slicedice.store import Kind, RunFolder, Store
from tests.remote.gcs_emulator import Bucket

GRID = '''"""Two layers that share nothing."""
from slicedice.grid import Grid, axis

def get_grid(scale):
    return Grid(axis("model.experts", ["dense", "n=4 g=1/2"]))
'''

ENGINE = '''"""An engine that starts nothing by itself."""
from dataclasses import dataclass
from slicedice.launching import Phase

@dataclass(frozen=True)
class Engine:
    def render(self, job):
        return {"engine.txt": job.command(0)}

    def submit(self, job, rendered):
        return ["unit"] * len(job.units)

    def poll(self, launch):
        return [Phase.ENDED] * len(launch.units)

    def cancel(self, launch, units):
        pass

    def logs(self, launch, unit):
        return ""

def get_launcher():
    return Engine()
'''

SETTINGS = (
    *("--grid", "./two.py", "--scale", "smoke"),
    *("--config.data.source=text", "--config.budget.tokens=76800", "--config.execution.checkpoint_seconds=0.3"),
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for all tests here: the native kernel takes ten seconds to compile."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def desk(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with text, a grid and a launcher."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    words = ["alpha", "beta", "gamma", "delta", "zeta"]
    draws = np.random.default_rng(0).choice(words, (40, 200))
    (tmp_path / "text").mkdir()
    for i, line in enumerate(draws):
        (tmp_path / "text" / f"{i}.txt").write_text(" ".join(line))
    (tmp_path / "two.py").write_text(GRID)
    (tmp_path / "engine.py").write_text(ENGINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts doors as processes of their own, that do not outlive the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        environment = os.environ | {
            "PYTHONPATH": str(Path(slicedice.__file__).parents[1]),
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "1",
        }
        command = [sys.executable, "-m", *words]
        started.append(subprocess.Popen(command, env=environment, text=True, stdout=-1, stderr=-1))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], status: int = 0) -> str:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == status, f"exit {process.returncode}\n{output}\n{errors}"
    return output


def middle_of(bucket: Bucket, process: subprocess.Popen[str], after: int = 0) -> str:
    """Waits until a run has a checkpoint that is whole, of an attempt after some, and returns the run."""
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        for name in list(bucket.blobs):
            match = re.search(r"runs/(\w+)/attempts/(\d+)/checkpoints/training/\d+/commit_success", name)
            if match and int(match[2]) > after:
                return match[1]
        time.sleep(0.01)
    process.kill()
    raise AssertionError(process.communicate())


def trained(run: RunFolder) -> dict[str, np.ndarray]:
    with ocp.StandardCheckpointer() as reader:
        leaves = reader.restore(epath.Path(os.fspath(run.attempt().checkpoints.absolute())) / "model")
    return {name: np.asarray(leaf) for name, leaf in leaves.items()}


def printed(capsys: pytest.CaptureFixture, status: int) -> Any:
    said = capsys.readouterr()
    assert status == 0, said
    return said.out


def test_a_sweep_whose_worker_is_killed_ends_bitwise_as_one_in_a_folder(
    root: Path, bucket: Bucket, desk: Path, start, capsys: pytest.CaptureFixture
):
    ended(start("slicedice.sweep", *SETTINGS, "--max_concurrent", "1"))
    process = start("slicedice.sweep", *SETTINGS, "--max_concurrent", "1", "--store", str(root))
    run = middle_of(bucket, process)
    holder = Store(root).run(run).attempts()[0].holder
    assert holder
    os.kill(holder.pid, signal.SIGKILL)
    said = ended(process)
    assert f"{root}/reports/" in said

    there, folder = Store(root), Store("runs")
    assert len(there.ids()) == 2
    assert there.ids() == folder.ids()
    assert there.run(run).failures() == {Kind.PREEMPTED: 1}
    for id_ in folder.ids():
        first, second = folder.run(id_), there.run(id_)
        one, two = first.result(), second.result()
        assert one
        assert two
        assert one["kind"] == two["kind"] == Kind.DONE
        for part in ("steps", "train", "evaluation"):
            assert one[part] == two[part]
        assert first.attempt().metrics.read_bytes() == second.attempt().metrics.read_bytes()
        leaves, others = trained(first), trained(second)
        assert leaves.keys() == others.keys()
        for name in leaves:
            np.testing.assert_array_equal(leaves[name], others[name], err_msg=name)
        assert "attempt" in second.log_of(0).read_text()
    assert re.search("attempt 1(.|\n)*attempt 2", there.run(run).log_of(0).read_text())
    (page,) = (path for path in there.root.rglob("index.html"))
    assert size(page) > 1000

    store = ("--store", str(root))
    rows = json.loads(printed(capsys, sweep.main(["status", *SETTINGS, *store, "--json"])))["runs"]
    assert [row["state"] for row in rows] == ["done", "done"]
    assert "attempt 2" in printed(capsys, sweep.main(["logs", run, *store]))
    (scored,) = json.loads(printed(capsys, evaluate.main(["--run", run, *store, "--json"])))
    assert scored["status"] == "as it was after training"
    assert "held_out" in there.run(run).evaluations()
    dense = next(id_ for id_ in there.ids() if there.read_spec(id_).model.layer.is_dense)
    printed(capsys, export.main(["--run", dense, "--to", "hf", *store, "out"]))
    assert (desk / "out" / "model.safetensors").stat().st_size > 1000
    assert "an attempt that another" in printed(capsys, sweep.main(["gc", *store, "--yes"]))
    assert [one.number for one in there.run(run).attempts()] == [2]
    assert there.run(run).state().kind is Kind.DONE
    assert not [name for name in bucket.blobs if "/training/" in name]
    printed(capsys, sweep.main(["report", *SETTINGS, *store]))


def test_a_work_unit_is_stopped_and_cancelled(
    root: Path, bucket: Bucket, desk: Path, start, capsys: pytest.CaptureFixture
):
    arguments = [*SETTINGS, "--config.budget.tokens=25600000", "--only", "*dense*", "--store", str(root)]
    printed(capsys, sweep.main(["run", *arguments, "--launcher", "./engine.py"]))
    store = Store(root)
    (launch,), (id_,) = store.launches(), store.ids()
    run, unit = store.run(id_), ("slicedice.work", "--store", str(root), "--unit", f"{launch.name}/0")
    assert (launch.folder / "engine.txt").read_text() == " ".join(("python", "-m", *unit))

    worker = start(*unit)
    middle_of(bucket, worker)
    worker.send_signal(signal.SIGTERM)
    ended(worker, 75)
    stopped = run.state()
    assert stopped.kind is Kind.PREEMPTED
    assert stopped.steps > 0

    worker = start(*unit)
    middle_of(bucket, worker, after=1)
    assert "1 runs are cancelled" in printed(capsys, sweep.main(["cancel", *arguments, "--launcher", "./engine.py"]))
    ended(worker)
    assert run.state().kind is Kind.CANCELLED
    assert run.attempts()[0].has_checkpoint
    assert run.attempts()[0].steps > stopped.steps
    assert f"{id_} passed_over" in ended(start(*unit))


def size(path: Path) -> int:
    return len(path.read_bytes())
