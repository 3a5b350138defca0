"""Many runs in a bucket are looked at with few requests, and what is found is what each run's folder says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slicedice.spec import canonical_json, run_id
from slicedice.store import Kind, RunState, Store
from slicedice.store.files import as_path, remove_all
from tests import endings
from tests.remote.gcs_emulator import Bucket, Emulator

RUNS = 40


@pytest.fixture
def runs(tiny) -> dict[str, Any]:
    points = [tiny({"seed": seed}) for seed in range(RUNS)]
    return {run_id(spec): (spec, execution) for spec, execution in points}


@pytest.fixture
def store(root: Path, runs: dict[str, Any], here: Path) -> Store:
    """All runs are done but for one that is missing, one that has not begun, and one that was preempted."""
    store = Store(root).create()
    for number, (id_, run) in enumerate(runs.items()):
        if number:
            store.run(id_).create(*run)
        if number == 2:
            endings.fail(store.run(id_), Kind.PREEMPTED, "because")
        if number > 2:
            endings.finish(store.run(id_), Kind.DIVERGED if number == 3 else Kind.DONE, {"steps": number})
    return store


def asked(emulator: Emulator, do: Callable[[], Any]) -> int:
    """How many requests it takes."""
    before = emulator.requests.total()
    do()
    return emulator.requests.total() - before


def test_what_was_read_of_a_finished_run_is_not_read_again(store: Store, runs, emulator: Emulator):
    folders = {id_: store.run(id_).look() for id_ in runs}
    first = asked(emulator, lambda: store.look(runs))
    second = asked(emulator, lambda: store.look(runs))
    assert first - second == 2 * (RUNS - 3), "of each a spec and a result"
    assert store.look(runs) == folders
    assert asked(emulator, lambda: store.evaluations(list(runs))) == 1


@pytest.mark.parametrize(
    "change", ["replaced", "removed", "torn", "of another run", "spec gone", "damaged here", "run"]
)
def test_what_has_changed_since_is_read(store: Store, runs, here: Path, change: str):
    *_, spare, id_ = runs
    store.look(runs)
    folder = store.run(id_)
    result = json.loads((folder.path / "result.json").read_text())
    if change == "replaced":
        (folder.path / "result.json").write_bytes(json.dumps(result | {"steps": 77}).encode())
    elif change == "removed":
        (folder.path / "result.json").unlink()
    elif change == "torn":
        (folder.path / "result.json").write_bytes(b'{"schema": 1, "ki')
    elif change == "of another run":
        (folder.path / "spec.json").write_bytes(canonical_json(runs[spare][0]).encode())
    elif change == "spec gone":
        (folder.path / "spec.json").unlink()
    elif change == "damaged here":
        (known,) = here.rglob(f"{id_}.json")
        known.write_text(known.read_text().replace('"done"', '"tired"'))
    else:
        remove_all(folder.path)
    now = folder.look()
    assert store.look(runs)[id_] == now
    assert (now[0] == RunState(Kind.DONE, RUNS - 1)) is (change == "damaged here")
    assert store.look(runs)[spare][0] == RunState(Kind.DONE, RUNS - 2)


def test_two_buckets_are_not_confused(store: Store, runs, bucket: Bucket, emulator: Emulator):
    store.look(runs)
    other = Bucket("another-bucket")
    emulator.buckets["another-bucket"] = other
    other.blobs = {name: blob for name, blob in bucket.blobs.items() if not name.endswith("result.json")}
    there = Store(as_path("gs://another-bucket/some/store"))
    assert not any(result for _, result in there.look(runs).values())


def test_evaluations_are_those_of_each_run(store: Store, runs):
    ids = list(runs)
    for id_ in ids[5:7]:
        store.run(id_).write_evaluation("paloma", {"value": id_})
    (store.run(ids[7]).path / "evaluations" / "bad.json").write_bytes(b"{")
    found = store.evaluations(ids)
    assert found == {id_: store.run(id_).evaluations() for id_ in ids}
    assert [bool(found[id_]) for id_ in ids[5:8]] == [True] * 3


@pytest.mark.parametrize("folder", ["a", "a [b] {c}*?!"])
def test_versions_are_of_names_that_fit(bucket: Bucket, folder: str):
    place = as_path(f"gs://{bucket.name}/{folder}")
    names = [f"{i:04}/x.json" for i in range(1200)]
    for name in (*names, "x.json", "1/2/x.json", "1/x.json.bak", "1/xAjson"):
        bucket.put(f"{folder}/{name}", b"", "text", {})
    bucket.put("b/1/x.json", b"", "text", {})
    before = place.versions("*/x.json")  # pyright: ignore[reportAttributeAccessIssue]
    assert sorted(before) == names
    (place / names[3]).write_bytes(b"again")
    after = place.versions("*/x.json")  # pyright: ignore[reportAttributeAccessIssue]
    assert {name for name in names if before[name] != after[name]} == {names[3]}
