"""A store in a bucket: who gets a run, what a sweep leaves there, and what is left of a worker that was killed."""

import importlib.util
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

import pytest

from slicedice import commandline
from slicedice.spec import run_id
from slicedice.store import Kind, Store, StoreError
from slicedice.store.files import as_path, create, read_json, remove_all, size_of, write_json, write_whole
from tests.remote.gcs_emulator import UNTOLD, Emulator

# Looked for, and not imported: the store sets what gcsfs reads when it is imported.
pytestmark = pytest.mark.skipif(not importlib.util.find_spec("gcsfs"), reason="gs:// takes gcsfs")

GRID = """
from slicedice.grid import Grid, axis


def get_grid(scale):
    return Grid(axis("model.experts", ["dense", "n=4 g=1/2"]))
"""

RACE = """
import sys
from slicedice.store.files import as_path, create
path = as_path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
print([create(path / str(i), {"by": sys.argv[2]}) for i in range(20)], flush=True)
"""


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Emulator]:
    """An empty bucket called "bucket", found by this process and those that it starts."""
    from slicedice.store import objects

    with Emulator("bucket") as cloud:
        for name, value in (cloud.environment | {"XDG_CACHE_HOME": str(tmp_path / "cache")}).items():
            monkeypatch.setenv(name, value)
        type(objects.service()).clear_instance_cache()
        objects.service.cache_clear()
        yield cloud
        type(objects.service()).clear_instance_cache()
        objects.service.cache_clear()


class Desk:
    """A folder of this machine with a grid, from which doors are called as processes of their own."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "mine.py").write_text(GRID)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        # Workers too find the package that is tested.
        path = os.pathsep.join([os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": path}
        return subprocess.Popen([sys.executable, "-m", *arguments], cwd=self.folder, env=environment, **pipes)

    def sweep(self, verb: str, store: str, *more: str) -> str:
        plan = [] if verb in ("gc", "logs") else ["--grid", "mine.py", "--scale", "smoke"]
        if verb == "run":
            plan += ["--max_concurrent", "1"]
        process = self.start("slicedice.sweep", verb, *plan, "--store", store, *more)
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        return said


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def until(holds: Callable[[], object], process: subprocess.Popen[str]) -> None:
    while not holds():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def test_of_many_processes_that_create_an_object_one_did(cloud: Emulator):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, "gs://bucket/race", str(i)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(4)
    ]
    for racer in racers:
        assert racer.stdout
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("\n")
        racer.stdin.flush()
    told = [json.loads(racer.communicate()[0].lower()) for racer in racers]
    for i, column in enumerate(zip(*told, strict=True)):
        assert sum(column) == 1
        assert read_json(as_path("gs://bucket/race") / str(i)) == {"by": str(column.index(True))}


def test_who_was_not_told_that_he_made_it_finds_out(cloud: Emulator):
    told = []
    cloud.fault = lambda method, path: UNTOLD if "/upload/" in path and not told and not told.append(1) else 0
    assert create(as_path("gs://bucket/x"), {"by": "me"})
    assert told
    assert not create(as_path("gs://bucket/x"), {"by": "another"})


def test_what_is_written_is_found_at_once_by_name_and_in_listings(cloud: Emulator):
    folder = as_path("gs://bucket/a")
    assert read_json(folder / "b.json") is None
    assert not list(folder.iterdir())
    assert not folder.is_dir()
    write_json(folder / "b.json", {"c": 1})
    write_whole(folder / "d" / "e.txt", "four")
    assert [path.name for path in folder.iterdir()] == ["b.json", "d"]
    assert read_json(folder / "b.json") == {"c": 1}
    assert size_of(folder / "d") == size_of(folder / "d" / "e.txt") == 4
    remove_all(folder)
    assert not list(folder.rglob("*"))
    assert read_json(folder / "b.json") is None


def test_a_listing_of_several_pages_is_whole(cloud: Emulator, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tests.remote.gcs_emulator.PAGE", 2)
    for i in range(5):
        write_whole(as_path(f"gs://bucket/a/{i}/x"), "")
    assert [path.name for path in as_path("gs://bucket/a").iterdir()] == list("01234")


def test_a_refusal_of_the_bucket_is_told_and_no_run_is_blamed(cloud: Emulator, tiny, capsys: pytest.CaptureFixture):
    store = Store("gs://bucket/folder").create()
    spec, execution = tiny()
    run = run_id(spec)
    store.run(run).create(spec, execution)
    cloud.fault = lambda method, path: 403
    status = commandline.door(lambda _: int(store.run(run).state().kind.is_settled))()
    assert status == 2
    assert "gs://bucket/folder" in capsys.readouterr().err
    cloud.fault = lambda method, path: 0
    assert store.run(run).state().kind is Kind.MISSING


@pytest.mark.parametrize("name", ["s3://bucket/x", "gs://", "gs://bucket/../x", "gs://Bucket/x", "gs://bucket//x"])
def test_what_names_no_place_in_a_bucket_is_refused(name: str):
    with pytest.raises(StoreError, match="gs://BUCKET/FOLDER"):
        Store(name)


def test_a_sweep_in_a_bucket_ends_as_one_in_a_folder_though_a_worker_is_killed(cloud: Emulator, desk: Desk):
    """The whole way of a sweep: run, a kill, again, a report; then logs, status, and garbage."""
    often = "--config.execution.checkpoint_seconds=0.01"
    desk.sweep("run", "local", often)
    sweep = desk.start(
        "slicedice.sweep", *("--grid", "mine.py", "--scale", "smoke", "--max_concurrent", "1"),
        *("--store", "gs://bucket/folder", often),
    )  # fmt: skip
    blobs = cloud.buckets["bucket"].blobs
    until(lambda: [name for name in list(blobs) if re.search("/training/[0-9]+/commit_success", name)], sweep)
    store = Store("gs://bucket/folder")
    killed = next(id_ for id_ in store.ids() if store.run(id_).attempts() and store.run(id_).attempts()[0].holder)
    holder = store.run(killed).attempts()[0].holder
    assert holder
    os.kill(holder.pid, signal.SIGKILL)
    said, _ = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, said
    assert any(name.startswith("folder/reports/") and name.endswith("index.html") for name in blobs)
    local = Store(desk.folder / "local")
    assert len(store.run(killed).attempts()) == 2
    assert set(store.ids()) == set(local.ids())
    assert len(local.ids()) == 2
    for id_ in local.ids():
        there, here = store.run(id_).result(), local.run(id_).result()
        assert there
        assert here
        assert there["kind"] == here["kind"] == "done"
        assert there["evaluation"] == here["evaluation"]
        assert there["train"] == here["train"]
        one, other = store.run(id_).attempt(), local.run(id_).attempt()
        assert one.metrics.read_bytes() == other.metrics.read_bytes()
    assert re.search(r"smoke +2 +2", desk.sweep("status", "gs://bucket/folder"))
    assert "attempt 2" in desk.sweep("logs", "gs://bucket/folder", killed)
    assert "nothing to cancel" in desk.sweep("cancel", "gs://bucket/folder")
    left = len(blobs)
    assert "attempts/1" in desk.sweep("gc", "gs://bucket/folder", "--yes")
    assert len(blobs) < left
    assert "in 0 places" in desk.sweep("gc", "gs://bucket/folder", "--yes")
    assert [store.run(id_).state().kind for id_ in store.ids()] == [Kind.DONE] * 2
