"""Sweeps on a real Slurm: what is requeued, cancelled, killed or out of time ends with every run done, once."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from slicedice.store import Kind, Launch, RunFolder, Store, metrics
from tests.launch import slurm_cluster
from tests.launch.slurm_cluster import ask, wait_until

pytestmark = pytest.mark.skipif(not slurm_cluster.is_here(), reason="takes slurm-wlm, munge and root")

LONG_SECONDS = 300
"""For what takes a worker's start and some training, on a machine that has other things to do."""

GRID = """\
from slicedice.grid import Grid, axis


def get_grid(scale):
    return Grid(axis("optimizer.learning_rate", {rates}))
"""


class Place:
    """A folder of the cluster's to sweep from."""

    def __init__(self, folder: Path, environment: dict[str, str]):
        self.folder, self.environment, self.store = folder, environment, folder / "runs"

    def sweep(self, *words: str) -> str:
        """Runs the sweep door on the store; returns what it prints."""
        command = [sys.executable, "-m", "slicedice.sweep", *words, "--store", str(self.store), "--scale", "smoke"]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=LONG_SECONDS
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, grid: str, steps: int, *words: str) -> tuple[list[str], Launch]:
        """Hands the runs of a grid that are missing over; returns the words that name the grid, and the launch."""
        same = ["--grid", grid, "--seeds", "1", f"--config.budget.tokens={steps * 8 * 32}"]
        same += [word for word in words if word.startswith("--config.")]
        # Units of one run each, on CPUs.
        words = tuple(word for word in words if word not in same)
        said = self.sweep(*same, "--launcher", "slurm", "--launcher.gres=", "--unit_hours=1e-9", *words)
        (name,) = re.findall(r"submitted as (\S+)\.", said)
        (launch,) = [one for one in Store(self.store).launches() if one.name == name]
        return same, launch

    def run(self, launch: Launch, unit: int = 0) -> RunFolder:
        """The run of a unit that has one."""
        (id_,) = launch.units[unit]
        return Store(self.store).run(id_)

    def states(self, launch: Launch) -> dict[str, str]:
        """Of the launch's tasks that squeue lists, what they are doing."""
        jobs = ",".join({handle.partition("_")[0] for handle in launch.handles})
        lines = ask(self.environment, "squeue", "--noheader", "--array", f"--jobs={jobs}", "--format=%i %T")
        return dict(line.split() for line in lines.splitlines())

    def wait_for_end(self, *launches: Launch) -> None:
        wait_until(lambda: not any(map(self.states, launches)), "all have left the queue", LONG_SECONDS)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Place]:
    with slurm_cluster.cluster() as environment:
        folder = tmp_path_factory.mktemp("sweeps")
        # Where workers keep what they compile, as for a user whose home is everywhere the same.
        yield Place(folder, environment | {"XDG_CACHE_HOME": str(folder / "cache"), "JAX_PLATFORMS": "cpu"})


def trains(run: RunFolder, attempt: int, past: int = 50) -> bool:
    """Whether the run's newest attempt is this one, and has come further than so many steps."""
    made = run.attempts()
    return bool(made) and made[0].number == attempt and made[0].steps > past


def goes_on(run: RunFolder, past: int) -> bool:
    """Whether an attempt after this one has gone past where the one before was, and has all the metrics before."""
    made = run.attempts()
    if len(made) < past + 1 or made[0].steps <= made[1].steps:
        return False
    steps = [line["step"] for line in metrics.read(made[0].metrics)]
    assert steps == list(range(len(steps)))
    return True


def endings(run: RunFolder) -> list[Kind | None]:
    """How all attempts ended, the first one first; None for one that did not say."""
    return [ending and ending.kind for ending in (one.ending() for one in reversed(run.attempts()))]


def steps_of(run: RunFolder) -> list[int]:
    """The steps of which the result's attempt has metrics."""
    return [line["step"] for line in metrics.read(run.attempt().metrics)]


def processes_of(launch: Launch, unit: int) -> dict[int, int]:
    """The worker's processes on a unit: their numbers of the system, by their ranks."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().decode().split("\0")
            variables = dict(line.split("=", 1) for line in (path / "environ").read_bytes().decode().split("\0")[:-1])
        except (OSError, ValueError):
            continue
        if words[1:3] == ["-m", "slicedice.work"] and words[-2] == f"{launch.name}/{unit}":
            found[int(variables["SLURM_PROCID"])] = int(path.name)
    return found


def test_a_sweep_survives_requeues_kills_and_cancelling(place):
    (place.folder / "rates.py").write_text(GRID.format(rates=[1e-3, 2e-3, 4e-3]))
    steps = 3000
    same, launch = place.submit("rates.py", steps)
    requeued, killed, cancelled = (place.run(launch, unit) for unit in range(3))
    for run in (requeued, killed, cancelled):
        wait_until(lambda run=run: trains(run, 1), "the run trains", LONG_SECONDS)
    ask(place.environment, "scontrol", "requeue", launch.handles[0])
    os.kill(processes_of(launch, 1)[0], signal.SIGKILL)
    place.sweep("cancel", *same, "--only", cancelled.path.name)
    wait_until(lambda: launch.handles[2] not in place.states(launch), "the cancelled unit leaves the queue")
    assert cancelled.state().kind is Kind.CANCELLED
    # The same command again takes up what was cancelled, and leaves alone what is in the queue.
    _, again = place.submit("rates.py", steps)
    assert again.units == (launch.units[2],)
    place.wait_for_end(launch, again)
    for run in (requeued, killed, cancelled):
        assert run.state().kind is Kind.DONE, (run.path / "log.txt").read_text()
        assert steps_of(run) == list(range(steps))
    assert endings(requeued) == [Kind.PREEMPTED, Kind.DONE]
    assert endings(killed) == [None, Kind.DONE]
    assert endings(cancelled) in ([Kind.CANCELLED, Kind.DONE], [Kind.PREEMPTED, Kind.DONE])  # by what came first
    assert "restart 1" in place.sweep("logs", killed.path.name)
    rows = json.loads(place.sweep("status", *same, "--json"))["runs"]
    assert [row["state"] for row in rows] == ["done"] * 3


def test_a_run_out_of_time_or_preempted_goes_on_from_its_checkpoint(place):
    (place.folder / "long.py").write_text(GRID.format(rates=[3e-3]))
    # Slurm looks every 30 seconds, and sends the signal that much too early rather than too late.
    settings = ("--launcher.time=1", "--launcher.warning=20", "--launcher.extra=--exclusive")
    same, launch = place.submit("long.py", 10**6, *settings)
    run, log = place.run(launch), launch.folder / "unit-000.log"
    wait_until(lambda: goes_on(run, 1), "it goes on after it was out of time", LONG_SECONDS)
    assert "Exited with exit code 75" in log.read_text()
    assert "DUE TO TIME LIMIT" not in log.read_text()
    ask(place.environment, "srun", "--partition=urgent", "--nodes=2", "--exclusive", "true")
    wait_until(lambda: "DUE TO PREEMPTION" in log.read_text(), "a more urgent job takes its node")
    preempted = len(run.attempts())
    wait_until(lambda: goes_on(run, preempted), "it goes on after it was preempted", LONG_SECONDS)
    assert set(endings(run)[:-1]) == {Kind.PREEMPTED}
    place.sweep("cancel", *same)
    place.wait_for_end(launch)
    assert run.state().kind is Kind.CANCELLED


def test_a_unit_on_two_nodes_survives_the_loss_of_one_process(place):
    (place.folder / "wide.py").write_text(GRID.format(rates=[5e-3]))
    _, launch = place.submit("wide.py", 200, "--config.execution.mesh=data=2", "--launcher.devices_per_node=1")
    run = place.run(launch)
    wait_until(lambda: trains(run, 1, 5), "the run trains", LONG_SECONDS)
    jobs = f"--jobs={launch.handles[0]}"
    assert ask(place.environment, "squeue", "--noheader", jobs, "--format=%D %N") == "2 127.0.0.[1-2]"
    ranks = processes_of(launch, 0)
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[1], signal.SIGKILL)
    place.wait_for_end(launch)
    assert run.state().kind is Kind.DONE, (launch.folder / "unit-000.log").read_text()
    assert steps_of(run) == list(range(200))
    assert len(run.attempts()) == 2
    result = run.result()
    assert result
    assert result["provenance"]["devices"] == 2
