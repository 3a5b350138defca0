"""Weights & Biases without a network: what is in the files that `wandb sync` sends."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import slicedice
from slicedice.spec import run_id, run_name
from slicedice.store import RunFolder, Store

pytest.importorskip("clu")
pytest.importorskip("wandb")

CODE = """
import contextlib, sys
from slicedice.store import Store
from slicedice.writers import RunWriter, run

root, id, first, last, end, text = sys.argv[1:]
first, last = int(first), int(last)
run.EVERY_SECONDS = 0
store = Store(root)
folder = store.run(id)
with folder.claim() as claim, contextlib.closing(RunWriter(store.read_spec(id), folder.execution(), store)) as shown:
    earlier = claim.begin_on(text)
    shown.begin(first, (claim, *earlier))
    if first:
        claim.take_over(earlier[0], first)
    writer = claim.record()
    writer.begin(first)
    for step in range(first, last):
        values = {"step": step, "loss": step + first / 100}
        writer.write(values)
        shown.step(values)
        if step % 4 == 3:
            scores = {"held_out": {"macro": {"nats": step / 8}}}
            claim.append_evaluation(step + 1, "held_out", scores)
            shown.evaluation(step + 1, "held_out", scores)
    print("worker's own output")
    if end == "raises":
        raise RuntimeError("training failed")
"""


@pytest.fixture
def run(tiny, tmp_path: Path) -> tuple[Store, RunFolder]:
    spec, execution = tiny({"execution.writers": "wandb", "model.experts": "n=4 g=1/4"})
    store = Store(tmp_path / "store").create()
    store.run(spec).create(spec, execution)
    return store, store.run(spec)


def train(
    store: Store, folder: RunFolder, first: int, last: int, end: str = "", text: str = "a", **environment: str
) -> Any:
    """A worker's process that trains the steps from `first` to before `last`."""
    words = ["-c", CODE, str(store.root), folder.path.name, str(first), str(last), end, text]
    return started(words, store.root.parent, **environment)


def started(words: list[str], home: Path, **environment: str) -> Any:
    """A process of Python that ended, with nobody's settings, and no one's key."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    paths = {"HOME": str(home), "PYTHONPATH": str(Path(slicedice.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=keep | paths | {"WANDB_MODE": "offline", "WANDB_ERROR_REPORTING": "false"} | environment,
    )


def records(path: Path) -> Iterator[Any]:
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2  # pyright: ignore[reportMissingImports]

    proto: Any = wandb_internal_pb2

    content, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        part += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last of several parts
            yield proto.Record.FromString(part)
            part = b""


def read(store: Store) -> list[tuple[Any, list[dict[str, float]], Any]]:
    """Of each process, in order: the run, the rows that it logged, and how it ended."""
    found = []
    for path in sorted((store.root / "wandb").glob("offline-run-*/*.wandb")):
        whole = list(records(path))
        assert not [record for record in whole if record.HasField("output") or record.HasField("output_raw")]
        (run,) = (record.run for record in whole if record.HasField("run"))
        rows = [
            {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for record in whole
            if record.HasField("history")
        ]
        (end,) = (record.exit for record in whole if record.HasField("exit"))
        found.append((run, rows, end))
    return found


def losses(rows: list[dict[str, float]]) -> list[tuple[int, float]]:
    return [(int(row["_step"]), row["train/loss"]) for row in rows if "train/loss" in row]


def test_a_run_that_goes_on_is_the_same_run_and_has_no_step_twice(run):
    store, folder = run
    done = train(store, folder, 0, 10)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "worker's own output\n"
    train(store, folder, 6, 14)  # the last checkpoint was of step 6
    (one, first, _), (other, second, end) = read(store)
    assert one.run_id == other.run_id
    assert one.run_id.startswith(run_id(store.read_spec(folder.path.name)))
    assert one.display_name == run_name(store.read_spec(folder.path.name))
    assert "/" in one.display_name
    assert one.project == "slicedice"
    assert losses(first) == [(step, float(step)) for step in range(10)]
    assert losses(second) == [(step, step + 0.06) for step in range(10, 14)]
    scored = [
        (row["_step"], row["evaluation/held_out/macro/nats"])
        for row in first + second
        if len(row) and "evaluation/held_out/macro/nats" in row
    ]
    assert scored == [(4, 3 / 8), (8, 7 / 8), (12, 11 / 8)]
    assert end.exit_code == 0


def test_settings_are_nested_as_they_are_named(run):
    store, folder = run
    train(store, folder, 0, 1)
    ((run, _, _),) = read(store)
    config = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in run.config.update}
    config |= {
        item.key: json.loads(item.value_json)
        for path in (store.root / "wandb").glob("offline-run-*/*.wandb")
        for record in records(path)
        for item in record.config.update
        if item.key
    }
    assert config["optimizer"]["learning_rate"] == store.read_spec(folder.path.name).optimizer.learning_rate
    assert config["execution"]["writers"] == "wandb"


def test_a_run_that_starts_over_is_another_run(run):
    store, folder = run
    train(store, folder, 0, 3)
    train(store, folder, 0, 2, text="b")
    (one, _, _), (other, rows, _) = read(store)
    assert one.run_id != other.run_id
    assert [step for step, _ in losses(rows)] == [0, 1]


def test_a_run_that_fails_ends_as_failed(run):
    store, folder = run
    assert train(store, folder, 0, 3, "raises").returncode != 0
    ((_, rows, end),) = read(store)
    assert [step for step, _ in losses(rows)] == [0, 1, 2]
    assert end.exit_code == 1


def test_projects_and_folders_are_as_the_environment_says(run, tmp_path: Path):
    store, folder = run
    (tmp_path / "elsewhere").mkdir()
    train(store, folder, 0, 1, WANDB_PROJECT="mixtures", WANDB_DIR=str(tmp_path / "elsewhere"))
    assert not (store.root / "wandb").exists()
    (path,) = (tmp_path / "elsewhere").glob("wandb/offline-run-*/*.wandb")
    assert [record.run.project for record in records(path) if record.HasField("run")] == ["mixtures"]


TOGETHER = """
import sys
from pathlib import Path
from slicedice.writers.weights_and_biases import WandbWriter

one, other = (WandbWriter(f"{name}-abcdef", name, Path(sys.argv[1])) for name in ("one", "other"))
for writer, seed in ((one, 1), (other, 2)):
    writer.write_hparams({"seed": seed})
for step in range(3):
    one.write_scalars(step, {"train/loss": step})
    other.write_scalars(step, {"train/loss": step + 0.5})
one.close()
other.write_scalars(3, {"train/loss": 3.5})
try:
    raise RuntimeError("training failed")
except RuntimeError:
    other.close()
"""


def test_runs_that_are_trained_at_once_are_open_at_once(run):
    store, _ = run
    (store.root / "wandb").mkdir()
    done = started(["-c", TOGETHER, str(store.root)], store.root.parent)
    assert done.returncode == 0, done.stderr
    found = {run.display_name: (losses(rows), end.exit_code) for run, rows, end in read(store)}
    assert found["one"] == ([(step, float(step)) for step in range(3)], 0)
    assert found["other"] == ([(step, step + 0.5) for step in range(4)], 1)


def test_without_a_key_the_run_goes_on(run):
    store, folder = run
    done = train(store, folder, 0, 3, WANDB_MODE="online")
    assert done.returncode == 0, done.stderr
    assert "wandb is written to no longer, and the run goes on without" in done.stderr
    assert folder.attempt().metrics.read_text().count("\n") == 3


def test_a_key_is_in_none_of_our_files(run):
    store, folder = run
    key = "5ec7e7" * 7
    assert train(store, folder, 0, 3, WANDB_API_KEY=key).returncode == 0
    written = [path for path in store.root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path.name for path in written if path.name == "wandb.json"]
    assert not [path for path in written if key.encode() in path.read_bytes()]
