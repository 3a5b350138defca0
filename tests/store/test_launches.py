"""What was handed to engines is on record, and what a record says is data."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slicedice.store import Launch, Store, StoreError
from slicedice.store.launches import NAME, read_launch, write_launch
from tests.store.agents import contents

IDS = [f"{i:012x}" for i in range(5)]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").create()


def make(store: Store, name: str = "nano-ab12-1", **fields: Any) -> Launch:
    units = (tuple(IDS[:2]), tuple(IDS[2:]))
    return dataclasses.replace(Launch(name, store.launch_folder(name), "slurm", {}, units), **fields)


@pytest.mark.parametrize("handles", [(), ("123_0", "123_1"), ("host:5:77", "projects/a/locations/b/x.y")])
@pytest.mark.parametrize("launcher", ["slurm", "other/launch/mine.py", "mine.py"])
def test_a_launch_is_read_back_as_it_was_written(store: Store, handles: tuple[str, ...], launcher: str):
    settings = {"partition": "gpu", "nodes": 2, "fraction": 0.5, "exclusive": True, "account": ""}
    launch = make(store, launcher=launcher, settings=settings)
    write_launch(launch, {"job.sh": "#!/bin/sh\n", "more/words": "ä"})
    assert read_launch(launch.folder) == launch
    if handles:
        launch = dataclasses.replace(launch, handles=handles)
        write_launch(launch, {})
    (read,) = store.launches()
    assert read == launch
    assert {type(value) for value in read.settings.values()} == {str, int, float, bool}
    assert read.is_by_name == (launcher == "slurm")
    rendered = {name: text for name, text in contents(launch.folder).items() if name != "launch.json"}
    assert rendered == {"job.sh": b"#!/bin/sh\n", "more/words": "ä".encode()}


def test_of_two_sweeps_that_chose_one_name_the_second_is_told(store: Store):
    """Both asked for the next name before either was on record; units of the first must stay what they are."""
    first, second = make(store), make(store, units=((IDS[4],),))
    write_launch(first, {"job.sh": "first"})
    with pytest.raises(StoreError, match="another sweep began at the same moment"):
        write_launch(second, {"job.sh": "second"})
    assert read_launch(first.folder) == first
    assert (first.folder / "job.sh").read_text() == "first"


GOOD = {"launcher": "slurm", "settings": {}, "units": [[IDS[0]]], "handles": ["1_0"]}

# What is no text where there has to be one, and texts that would be a folder elsewhere, an option, or code.
BAD = {
    "launcher": [],
    "settings": [None, 5, "x", [1], ["abc"]],
    "units": [
        None,
        5,
        "0123456789ab",
        ["0123456789ab"],
        [None],
        [[5]],
        [["../../secret"]],
        [["--flag"]],
        [[f"{IDS[0]}/"]],
        [[f"{IDS[0]}\n"]],
        [[""]],
        [[IDS[0].upper() + "A"]],
        [["٠" * 12]],
        {"a": [IDS[0]]},
    ],
    "handles": [
        None,
        5,
        "123",
        [5],
        [None],
        ["-flag"],
        ["--all"],
        [""],
        ["1 2"],
        ["1;rm"],
        ["$(id)"],
        ["`id`"],
        ["1\n"],
        ["\n1"],
        ["é"],
        [".."],
        ["/etc/passwd"],
        ["*"],
        ["1,2"],
        ["a=b"],
        ["x" * 201],
        ["1", "-2"],
    ],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BAD.items() for value in values])
def test_a_record_with_anything_else_in_it_is_none(store: Store, field: str, value: object):
    folder = store.launch_folder("nano-ab12-1")
    folder.mkdir(parents=True)
    (folder / "launch.json").write_text(json.dumps({**GOOD, field: value}))
    with pytest.raises(StoreError, match=r"launch\.json"):
        read_launch(folder)
    assert store.launches() == []


@pytest.mark.parametrize("field", GOOD)
def test_a_record_that_lacks_something_is_none(store: Store, field: str):
    folder = store.launch_folder("nano-ab12-1")
    folder.mkdir(parents=True)
    (folder / "launch.json").write_text(json.dumps({name: value for name, value in GOOD.items() if name != field}))
    assert store.launches() == []


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", "[" * 100_000])
def test_a_damaged_record_is_none(store: Store, text: str):
    folder = store.launch_folder("nano-ab12-1")
    folder.mkdir(parents=True)
    assert store.launches() == []
    (folder / "launch.json").write_text(text)
    with pytest.raises(StoreError, match=str(folder)):
        read_launch(folder)
    assert store.launches() == []


@pytest.mark.parametrize(
    "launcher", ["/tmp/x.py", "../x", "./x.py", "x.py", "a/b", "", " ", "slurm\n", "-x", "..", "slurm.py", "a b", "1"]
)
def test_a_launcher_that_is_no_name_is_not_looked_for(store: Store, launcher: str):
    launch = make(store, launcher=launcher)
    write_launch(launch, {})
    assert read_launch(launch.folder) == launch
    assert not launch.is_by_name


@pytest.mark.parametrize("value", [None, 5, ["slurm"], {"a": 1}])
def test_a_launcher_that_is_no_text_becomes_one(store: Store, value: object):
    folder = store.launch_folder("nano-ab12-1")
    folder.mkdir(parents=True)
    (folder / "launch.json").write_text(json.dumps({**GOOD, "launcher": value}))
    assert read_launch(folder).launcher == str(value)


def test_settings_are_plain_values(store: Store):
    launch = make(store)
    write_launch(launch, {})
    settings = {"a": 1, "b": [1], "c": {"d": 1}, "e": None, "f": "x"}
    (launch.folder / "launch.json").write_text(json.dumps({**GOOD, "settings": settings}))
    assert read_launch(launch.folder).settings == {"a": 1, "f": "x"}


@pytest.mark.parametrize("name", ["A-1", "-a-1", "1-a", "a_1", "a.b", "a b", "x" * 41, "ä-1", "a\n"])
def test_folders_of_other_names_are_no_launches(store: Store, name: str):
    write_launch(make(store), {})
    write_launch(make(store, name), {})
    with pytest.raises(StoreError, match="names that no launch is given"):
        read_launch(store.launch_folder(name))
    assert [launch.name for launch in store.launches()] == ["nano-ab12-1"]


def test_launches_come_in_the_order_in_which_they_were_made(store: Store):
    names = ["b-x-1", "a-x-2", "c-x-9", "a-x-10", "b-x-10"]
    for name in reversed(names):
        write_launch(make(store, name), {})
    write_launch(make(store, "by-hand"), {})
    assert [launch.name for launch in store.launches()] == ["by-hand", *names]


def test_files_among_launches_are_none(store: Store):
    write_launch(make(store), {})
    store.launch_folder("notes.txt").write_text("words")
    store.launch_folder("abc").write_text("words")
    assert [launch.name for launch in store.launches()] == ["nano-ab12-1"]


LABELS = st.text(max_size=60) | st.text("aZ9-_ /.äİ\n", max_size=60)


@settings(deadline=None)
@given(label=LABELS)
def test_a_name_is_one_for_any_label(tmp_path_factory: pytest.TempPathFactory, label: str):
    store = Store(tmp_path_factory.getbasetemp() / "of no store")
    name = store.next_launch(label)
    assert NAME.fullmatch(name)
    assert "--" not in name
    assert make(store, name).tag == store.tag
    assert name == store.next_launch(label), "what would be submitted is what is"


def test_a_name_says_the_label(store: Store):
    for label, words in {
        "nano": "nano",
        "Granularity_10m": "granularity-10m",
        "10m": "l-10m",
        "": "l",
        "ä": "l",
        "é5": "l-5",
        "--x": "x",
        "a" * 50: "a" * 24,
        "my grid/of things that go on": "my-grid-of-things-that-g",
    }.items():
        assert store.next_launch(label).rpartition("-")[0].rpartition("-")[0] == words


def test_names_are_never_given_twice(store: Store, tmp_path: Path):
    names = []
    for label in ("nano", "nano", "10m", "", "nano"):
        names.append(store.next_launch(label))
        write_launch(make(store, names[-1]), {})
    assert len(set(names)) == 5
    assert [name.rpartition("-")[2] for name in names] == list("12345")
    assert {launch.name for launch in store.launches()} == set(names)
    elsewhere = Store(tmp_path / "elsewhere").create()
    assert elsewhere.next_launch("nano") != names[0], "an engine may have both"


@pytest.mark.parametrize("last", ["999999", "1000000", "9" * 30, "٣", "-5", "x", "007", ""])
def test_names_stay_names_whatever_is_there(store: Store, last: str):
    for _ in range(3):
        words = store.next_launch("n" * 30).rpartition("-")[0]
        store.launch_folder(f"{words}-{last}").mkdir(parents=True, exist_ok=True)
        name = store.next_launch("n" * 30)
        assert NAME.fullmatch(name)
        assert not store.launch_folder(name).exists()
        store.launch_folder(name).mkdir()
