"""Which folders are stores, and reading specs back."""

import json
import os
import shutil
from pathlib import Path

import pytest

from slicedice.spec import SCHEMA, canonical_json, run_id
from slicedice.store import Kind, Store, StoreError
from slicedice.store.store import LAYOUT
from tests.store.agents import contents


def test_a_store_is_made_and_opened_again(tmp_path: Path, tiny):
    root = tmp_path / "deep" / "store"
    spec, execution = tiny()
    assert not Store(root).exists()
    assert not root.parent.exists()
    Store(root).create().run(spec).create(spec, execution)
    assert Store(root).exists()
    before = contents(root)
    again = Store(str(root))
    assert again.read_spec(run_id(spec)) == spec
    assert again.run(spec).path == again.run(run_id(spec)).path
    assert contents(root) == before


def test_an_empty_folder_becomes_a_store(tmp_path: Path):
    Store(tmp_path)
    assert list(tmp_path.iterdir()) == []
    Store(tmp_path).create()
    assert json.loads((tmp_path / "store.json").read_text()) == {"layout": LAYOUT}
    Store(tmp_path).create()


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("words")
    with pytest.raises(StoreError) as caught:
        Store(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert contents(tmp_path) == {"thesis.tex": b"words"}


def test_a_file_is_refused(tmp_path: Path):
    path = tmp_path / "runs"
    path.write_text("words")
    with pytest.raises(StoreError, match="runs"):
        Store(path)
    assert path.read_text() == "words"


@pytest.mark.parametrize("marker", [json.dumps({"layout": LAYOUT + 1}), json.dumps({"layout": None}), "{", "[]", ""])
def test_a_store_of_another_layout_is_refused_and_left_as_it_is(tmp_path: Path, marker: str):
    (tmp_path / "store.json").write_text(marker)
    with pytest.raises(StoreError, match="another version") as caught:
        Store(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert contents(tmp_path) == {"store.json": marker.encode()}


def test_a_store_whose_making_was_killed_can_be_made(tmp_path: Path):
    (tmp_path / ".store.json.12345").write_text('{"lay')
    Store(tmp_path).create()
    assert json.loads((tmp_path / "store.json").read_text()) == {"layout": LAYOUT}


def test_a_run_that_is_not_there_is_named(tmp_path: Path):
    store = Store(tmp_path).create()
    (tmp_path / "runs").mkdir()
    for name in ("0123456789ab", ""):
        with pytest.raises(StoreError, match=f"There is no run '{name}' in") as caught:
            store.read_spec(name)
        assert "Remove" not in str(caught.value)


@pytest.mark.parametrize("damage", ["torn", "empty", "bytes", "schema", "list", "field gone", "wrong type"])
def test_a_damaged_spec_is_told_and_left_as_it_is(tmp_path: Path, tiny, damage: str):
    spec, execution = tiny({"model.experts": "n=4 g=1/2"})
    store = Store(tmp_path).create()
    store.run(spec).create(spec, execution)
    path = store.run(spec).path / "spec.json"
    text = canonical_json(spec)
    content = json.loads(text)
    damaged = {
        "torn": text[: len(text) // 2].encode(),
        "empty": b"",
        "bytes": b"\xff\xfe" + text.encode(),
        "schema": json.dumps({**content, "schema": SCHEMA + 1}).encode(),
        "list": json.dumps([content]).encode(),
        "field gone": json.dumps({name: value for name, value in content.items() if name != "model"}).encode(),
        "wrong type": json.dumps({**content, "budget": "many"}).encode(),
    }[damage]
    path.write_bytes(damaged)
    with pytest.raises(StoreError) as caught:
        store.read_spec(run_id(spec))
    assert str(path) in str(caught.value)
    assert path.read_bytes() == damaged


def test_the_spec_of_another_run_is_refused_with_the_id_it_is_of(tmp_path: Path, tiny):
    (spec, execution), (other, _) = tiny(), tiny({"seed": 1})
    store = Store(tmp_path).create()
    store.run(spec).create(spec, execution)
    shutil.copytree(store.run(spec).path, store.run(other).path)
    assert store.read_spec(run_id(spec)) == spec
    with pytest.raises(StoreError, match=run_id(spec)) as caught:
        store.read_spec(run_id(other))
    assert str(store.run(other).path) in str(caught.value)


def test_a_file_where_a_run_should_be_is_told(tmp_path: Path):
    store = Store(tmp_path).create()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "0123456789ab").write_text("words")
    with pytest.raises(StoreError, match="0123456789ab"):
        store.read_spec("0123456789ab")


def test_what_lies_among_the_runs_and_is_none_is_named_with_why(tmp_path: Path, tiny):
    store = Store(tmp_path).create()
    assert (store.ids(), store.strays(())) == ([], {})
    specs = [tiny({"seed": seed}) for seed in range(6)]
    ids = [run_id(spec) for spec, _ in specs]
    for spec, execution in specs:
        store.run(spec).create(spec, execution)
        claim = store.run(spec).claim()
        assert claim is not None
        claim.finish(Kind.DONE, {"steps": 6})
    assert (store.ids(), store.strays(())) == (sorted(ids), {})
    runs = tmp_path / "runs"
    for name in (f"{ids[0]} copy", f"{ids[0]}.bak", ids[0].upper() + "0"):
        shutil.copytree(runs / ids[0], runs / name)
    (runs / "notes.txt").write_text("words")
    (runs / ".hidden").mkdir()
    (runs / "0123456789ab").mkdir()  # begun just now: its spec.json is still to come
    (runs / ("0" * 12)).write_text("words")
    shutil.copytree(runs / ids[0], runs / ("f" * 12))
    spec_file = runs / ids[1] / "spec.json"
    spec_file.write_text(spec_file.read_text().replace(f'"schema":{SCHEMA}', f'"schema":{SCHEMA + 1}'))
    (runs / ids[2] / "spec.json").write_text("torn")
    (runs / ids[3] / "spec.json").unlink()
    (runs / ids[4] / "spec.json").unlink()
    found = store.strays({ids[4]})
    whys = {
        "no run's id": {f"{ids[0]} copy", f"{ids[0]}.bak", ids[0].upper() + "0", "notes.txt"},
        "cannot be read": {"0" * 12},
        "of another run": {"f" * 12},
        "damaged or of another version": {ids[1], ids[2]},
        "missing": {ids[3]},
    }
    assert {name for names in whys.values() for name in names} == set(found)
    for why, names in whys.items():
        assert all(why in found[name] for name in names), why


def test_names_that_are_no_text_can_be_printed(tmp_path: Path):
    store = Store(tmp_path).create()
    try:
        os.makedirs(os.path.join(os.fsencode(tmp_path), b"runs", b"copy \xff"))
    except OSError:
        pytest.skip("this file system has names that are text alone")
    (name,) = store.strays(())
    assert name.encode() == b"copy \\xff"


def test_runs_are_found_by_id_name_and_pattern(tmp_path: Path, tiny):
    store, ids = Store(tmp_path / "store").create(), {}
    for name, fields in {"dense": {}, "moe": {"model.experts": "n=4 g=1/2"}, "one": {"seed": 1}}.items():
        run = tiny(fields)
        store.run(run[0]).create(*run)
        ids[name] = run_id(run[0])
    assert store.matching(ids["moe"]) == store.matching(ids["moe"][:8]) == [ids["moe"]]
    assert store.matching("tiny-dense-seed0") == [ids["dense"]]
    assert store.matching("tiny-dense-*") == sorted([ids["dense"], ids["one"]])
    assert store.matching("*") == sorted(ids.values())
    assert store.matching("") == store.matching("tiny") == []
    (store.run(ids["one"]).path / "spec.json").write_text("torn")
    assert store.matching("tiny-dense-*") == [ids["dense"]]
    assert store.matching(ids["one"][:8]) == [ids["one"]]
