"""A desk with text, a grid, and a launcher that trains nothing; a bench and a pool, with workers that train nothing."""

import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from slicedice import evaluation, files, sweep, train, training
from slicedice.data import __main__ as data_door
from slicedice.machine import Slot
from slicedice.store import RunFolder, Store
from tests.doors.bench import SCORES, Bench, Checkpoints, Program
from tests.doors.cluster import CLUSTER
from tests.doors.pool import WORKER, Pool, add

LAUNCHER = '''
"""Every run ends at once, as outcomes.json beside this file says of its name, or else is done."""

import fnmatch
import json
from dataclasses import dataclass
from pathlib import Path

from slicedice.data import open_store
from slicedice.launching import Phase
from slicedice.spec import run_name

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Fake:
    color: str = "red"
    most: int = 3

    def render(self, job):
        return {"fake.txt": f"{self.color} {' '.join(job.runs)}"}

    def submit(self, job, rendered):
        return ["u"] * len(job.units)

    def poll(self, launch):
        return [Phase.ENDED] * len(launch.units)

    def cancel(self, launch, units):
        pass

    def logs(self, launch, unit):
        return "the engine says so"

    def attend(self, job):
        end_all(job)


def get_launcher():
    return Fake()


def end_all(job):
    with open(HERE / "launched.jsonl", "a") as file:
        file.write(json.dumps({"runs": job.runs, "max_concurrent": job.max_concurrent}) + "\\n")
    outcomes = json.loads((HERE / "outcomes.json").read_text()) if (HERE / "outcomes.json").exists() else {}
    for number, id_ in enumerate(job.runs):
        folder, spec = job.store.run(id_), job.store.read_spec(id_)
        job.watch()
        kind = next((kind for name, kind in outcomes.items() if fnmatch.fnmatch(run_name(spec), name)), "done")
        if kind == "missing":
            continue
        claim = folder.claim()
        if kind in ("crashed", "out_of_memory", "preempted"):
            claim.fail(kind, "because")
            continue
        d = spec.data
        text = open_store(d.source, d.tokenizer, job.store.data, d.heldout_fraction, d.tokens or 0)
        loss = 3.0 + number / 8
        scores = {name: {"nats": loss, "bits_per_byte": 1.0, "targets": 5} for name in ("a", "macro")}
        claim.finish(kind, {
            "steps": spec.budget.steps,
            "train": {"cross_entropy": float("nan") if kind == "diverged" else loss - 0.5},
            "evaluation": {} if kind == "diverged" else {"held_out": scores},
            "seconds_per_step": None,
            "provenance": {
                "data_fingerprint": text.fingerprint, "device": "d", "git_revision": None, "finished": "now"
            },
        })
'''

GRID = '''
"""Is mine better?

It <may> be."""

from slicedice.grid import Grid, axis


def get_grid(scale):
    points = axis("model.experts", ["dense", "n=4 g=1/2", "n=8 g=1/4"])
    return Grid(points)
'''


class Call(NamedTuple):
    """What a door said: its exit status, standard output and standard error."""

    status: int
    out: str
    err: str


class Desk:
    """The working folder, and the doors as one calls them from there."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]):
        self.folder, self._capture = folder, capture

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def sweep(self, *arguments: str, grid: str = "mine", scale: str = "smoke", launcher: str = "fake.py") -> Call:
        """Calls the sweep; an empty grid or scale is not given."""
        fixed = [*(["--grid", grid] * bool(grid)), *(["--scale", scale] * bool(scale)), "--launcher", launcher]
        text = [] if any("data.source" in a for a in arguments) else ["--config.data.source=texts"]
        return self._call(sweep.main, [*arguments, *fixed, *text])

    def train(self, *arguments: str) -> Call:
        return self._call(train.main, list(arguments))

    def data(self, *arguments: str) -> Call:
        return self._call(data_door.main, list(arguments))

    def _call(self, main: Callable[[list[str]], int], arguments: list[str]) -> Call:
        self._capture.readouterr()
        status = main(arguments)
        said = self._capture.readouterr()
        return Call(status, said.out, said.err)

    def outcomes(self, **kinds: str) -> None:
        """Says how runs end, by a part of their names."""
        self.write("outcomes.json", json.dumps({f"*{name}*": kind for name, kind in kinds.items()}))

    @property
    def launched(self) -> list[list[str]]:
        """The ids of the runs of every launch."""
        path = self.folder / "launched.jsonl"
        return [json.loads(line)["runs"] for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def runs(self) -> list[RunFolder]:
        """The runs in the store."""
        store = Store(self.folder / "runs")
        return [store.run(path.name) for path in sorted((self.folder / "runs" / "runs").iterdir())]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A small text of two domains."""
    draw = np.random.default_rng(0)
    for domain in ("a", "b"):
        records = (json.dumps({"text": "".join(draw.choice(list("abcd "), 60)) + "x"}) for _ in range(6))
        (tmp_path / "desk" / "texts" / domain).mkdir(parents=True)
        (tmp_path / "desk" / "texts" / domain / "all.jsonl").write_text("\n".join(records))
    return tmp_path / "desk" / "texts"


@pytest.fixture
def desk(texts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Desk:
    """A working folder of its own, in which the doors are called."""
    monkeypatch.chdir(texts.parent)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    desk = Desk(texts.parent, capsys)
    desk.write("fake.py", LAUNCHER)
    desk.write("sweeps/mine.py", GRID)
    return desk


@pytest.fixture
def bench(texts: Path, tmp_path: Path, tiny, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """A worker whose training is made up."""
    bench = Bench(Store(tmp_path / "store").create(), lambda overrides: tiny({"data.source": str(texts), **overrides}))
    monkeypatch.setattr(training, "Program", Program)
    monkeypatch.setattr(training, "Checkpoints", Checkpoints)
    monkeypatch.setattr(training, "train", bench.train)
    monkeypatch.setattr(evaluation, "held_out", lambda model, *_, **__: {**SCORES, "of": model})
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    levels = {name: logging.getLogger(name).level for name in ("absl", "jax", "fsspec")}
    yield bench
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def cluster(desk):
    """A desk with a launcher whose queue outlives the sweep."""
    desk.write("launch/cluster.py", CLUSTER)
    return desk


@pytest.fixture
def pool(tmp_path: Path, tiny, monkeypatch: pytest.MonkeyPatch) -> Pool:
    """The launcher of this machine, with two slots, five runs, and workers that train nothing."""
    worker = tmp_path / "worker"
    worker.write_text(WORKER.replace("{python}", sys.executable))
    worker.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(worker))
    store = Store(tmp_path / "store").create()
    ids = [add(store, tiny({"seed": seed})) for seed in range(5)]
    local = files.load("launch", "local")
    monkeypatch.setattr(local, "slots", lambda *_: [Slot(frozenset(), {"SLOT": str(i)}) for i in range(2)])
    return Pool(tmp_path, store, ids, local)
