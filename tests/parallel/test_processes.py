"""Runs whose devices belong to several processes: as one process trains them, and after one process was killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from slicedice import data
from slicedice.spec import run_id
from slicedice.store import Kind, RunFolder, Store
from slicedice.work import AGAIN

DEVICES = 8
SETTINGS = {
    "model.experts": "n=6 g=1/4",
    "router.group": 1,
    "optimizer.learning_rate": 3e-3,
    "budget.batch_size": 8,
    "budget.tokens": 40 * 8 * 16,
    "execution.mesh": "data=2 expert=4",
    "execution.expert_slack": 8.0,
    "execution.evaluate_every": 20,
    "evaluation.tokens": 512,
}


class Job:
    """A run in a store of its own, and the processes that train it together."""

    def __init__(self, folder: Path, text: Path, tiny: Callable[..., Any], **settings: Any):
        self.store = Store(folder).create()
        self.cache = text.parent / "compiled"  # one for all jobs, which compile much the same
        spec, execution = tiny({**SETTINGS, "data.source": str(text), **settings})
        self.run, self.steps = run_id(spec), spec.budget.steps
        self.folder.create(spec, execution)
        data.prepare(spec.data.source, "bytes", self.store.data, spec.data.heldout_fraction)
        self.processes: list[subprocess.Popen] = []

    @property
    def folder(self) -> RunFolder:
        return self.store.run(self.run)

    def start(self, count: int, worker: Sequence[str] = ("-m", "slicedice.work")) -> None:
        """Starts processes that are told which they are; `worker` is what each runs."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        for process in range(count):
            together = ["--processes", str(count), "--process", str(process), "--coordinator", address]
            self._start(worker, together if count > 1 else [], count)

    def start_by_slurm(self, count: int) -> None:
        """Starts processes as `srun` does, which find out from their environment."""
        for process in range(count):
            told = {"JOB_ID": os.getpid(), "STEP_NODELIST": "localhost", "STEP_NUM_NODES": 1}
            told |= {"NTASKS": count, "PROCID": process, "LOCALID": process}
            environment = {f"SLURM_{name}": str(value) for name, value in told.items()}
            self._start(("-m", "slicedice.work"), ["--processes", "0"], count, **environment)

    def _start(self, worker: Sequence[str], together: list[str], count: int, **environment: str) -> None:
        self.processes.append(
            subprocess.Popen(
                # Twice, so that all have to agree on passing by a run that is done, or that one was told to stop.
                [sys.executable, *worker, "--store", str(self.store.root), *together, self.run, self.run],
                env={
                    **os.environ,
                    "JAX_NUM_CPU_DEVICES": str(DEVICES // count),
                    "JAX_COMPILATION_CACHE_DIR": str(self.cache),
                    **environment,
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )

    def end(self) -> list[tuple[int, str]]:
        """The status and last words of each process."""
        ends = []
        for process in self.processes:
            output, _ = process.communicate(timeout=240)
            ends.append((process.returncode, output[-3000:]))
        self.processes = []
        return ends

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.folder.attempt().metrics.read_text().splitlines()]

    def train_until(self, step: int) -> None:
        deadline = time.monotonic() + 200
        while self.folder.state().steps < step:
            alive = all(process.poll() is None for process in self.processes)
            assert alive, self.kill()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def kill(self) -> list[tuple[int, str]]:
        for process in self.processes:
            process.kill()
        return self.end()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for i in range(200):
        (folder / f"{i}.txt").write_text(f"{i} times {i} is {i * i}, and that is that. " * 3)
    return folder


@pytest.fixture
def job(text: Path, tmp_path: Path, tiny):
    jobs = []

    def start(name: str = "store", **settings: Any) -> Job:
        jobs.append(Job(tmp_path / name, text, tiny, **settings))
        return jobs[-1]

    yield start
    for one in jobs:
        one.kill()


@pytest.fixture(scope="module")
def undisturbed(text: Path, tmp_path_factory: pytest.TempPathFactory, tiny) -> Job:
    """The run by one process that has all devices."""
    one = Job(tmp_path_factory.mktemp("one") / "store", text, tiny)
    one.start(1)
    ((status, output),) = one.end()
    assert status == 0, output
    return one


def _assert_same(got: Job, want: Job) -> None:
    assert [line["step"] for line in got.lines()] == list(range(got.steps))
    for a, b in zip(got.lines(), want.lines(), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)
    results = [job.folder.result() or {} for job in (got, want)]
    nats = [{name: own["nats"] for name, own in result["evaluation"]["held_out"].items()} for result in results]
    assert nats[0] == pytest.approx(nats[1], rel=1e-3)
    assert results[0]["kind"] == Kind.DONE
    lines = [_read(job.folder.attempt().evaluation_lines) for job in (got, want)]
    written = [[(line["step"], line["name"]) for line in own] for own in lines]
    assert written[0] == written[1] == [(20, "held_out"), (40, "held_out")]


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("count", "start"), [(2, Job.start_by_slurm), pytest.param(4, Job.start, marks=pytest.mark.long)]
)
def test_several_processes_train_what_one_does(count: int, start: Callable, job, undisturbed: Job):
    together = job()
    start(together, count)
    ends = together.end()
    assert [status for status, _ in ends] == [0] * count, ends
    assert all(f"{together.run} done" in output for _, output in ends)
    _assert_same(together, undisturbed)
    assert sorted(path.name for path in together.folder.path.glob("log*")) == [
        *(f"log-{process}.txt" for process in range(1, count)),
        "log.txt",
    ]


@pytest.mark.long
@pytest.mark.parametrize("killed", [0, 1])
def test_a_job_goes_on_after_one_of_its_processes_was_killed(killed: int, job, undisturbed: Job):
    together = job(**{"execution.checkpoint_seconds": 2.0})
    together.start(2)
    together.train_until(15)
    together.processes[killed].send_signal(signal.SIGKILL)
    ends = together.end()
    assert ends[killed][0] == -signal.SIGKILL
    assert ends[1 - killed][0] in (AGAIN, -signal.SIGABRT), ends
    state = together.folder.state()
    assert state.kind is Kind.PREEMPTED, state
    together.start(2)
    ends = together.end()
    assert [status for status, _ in ends] == [0, 0], ends
    _assert_same(together, undisturbed)


SMALL = """
import sys
from slicedice import training, work

class Small(training.Program):
    def __init__(self, spec, execution, devices=()):
        if execution.micro_batch > 1:
            raise RuntimeError("RESOURCE_EXHAUSTED: says a test")
        super().__init__(spec, execution, devices)

training.Program = Small
sys.exit(work.main(sys.argv[1:]))
"""


@pytest.mark.long
def test_processes_that_are_out_of_memory_go_on_together(job):
    """Twice: of micro-batches of 4, 2 and 1, the last alone fits."""
    large = {"budget.batch_size": 32, "execution.micro_batch": 4, "budget.tokens": 10 * 32 * 16}
    together = job(**large, **{"execution.evaluate_every": 0})
    together.start(2, ("-c", SMALL))
    ends = together.end()
    assert [status for status, _ in ends] == [0, 0], ends
    result = together.folder.result() or {}
    assert result["kind"] == Kind.DONE
    assert result["execution"]["micro_batch"] == 1
    assert len(together.lines()) == 10


@pytest.mark.long
def test_a_job_that_is_stopped_goes_on_with_other_processes_on_another_mesh(job, undisturbed: Job):
    together = job()
    together.start(4)
    together.train_until(10)
    together.processes[3].send_signal(signal.SIGTERM)  # one is told, and all stop after the same step
    ends = together.end()
    assert [status for status, _ in ends] == [0] * 4, ends
    assert together.folder.state().kind is Kind.PREEMPTED
    spec = together.store.read_spec(together.run)
    execution = json.loads((together.folder.path / "execution.json").read_text())
    (together.folder.path / "execution.json").write_text(json.dumps({**execution, "mesh": "data=4 expert=2"}))
    together.start(2)
    ends = together.end()
    assert [status for status, _ in ends] == [0, 0], ends
    assert spec.budget.steps == len(together.lines())
    _assert_same(together, undisturbed)
