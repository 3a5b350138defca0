"""How grids, experiments and launchers are found, and how their errors are told."""

import os
import re
import sys
from pathlib import Path

import pytest

from slicedice import files
from slicedice.files import FileError
from slicedice.grid import Grid, GridError, load_grid


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_comes_with_the_package_is_found_from_everywhere():
    assert files.find("sweeps", "granularity_vs_count").is_file()
    assert {"nano", "smoke", "10m"} <= set(files.names("experiments"))
    assert "local" in files.names("launch")


def test_the_working_folder_comes_first(here: Path):
    theirs = files.find("experiments", "nano")
    mine = write(here / "experiments" / "nano.py", "x = 1")
    assert files.find("experiments", "nano").samefile(mine)
    assert not mine.samefile(theirs)
    assert files.load("experiments", "nano").x == 1
    # Kinds do not mix, and the rest is still there.
    assert files.find("experiments", "smoke").parent == theirs.parent
    with pytest.raises(FileError):
        files.find("sweeps", "nano")


def test_a_path_is_taken_as_it_is(here: Path):
    write(here / "nano.py", "x = 2")
    write(here / "deep" / "nano.py", "x = 3")
    assert files.load("experiments", "nano.py").x == 2
    assert files.load("experiments", "./nano.py").x == 2
    assert files.load("experiments", "deep/nano.py").x == 3
    assert files.load("experiments", str(here / "deep" / "nano.py")).x == 3
    assert not hasattr(files.load("experiments", "nano"), "x")


def test_an_edit_of_the_same_length_and_second_is_seen(here: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    at = 1_700_000_000
    for text, want in (("x = 1", 1), ("x = 2", 2)):
        os.utime(write(here / "a.py", text), (at, at))
        assert files.load("sweeps", "a.py").x == want
    assert [path.name for path in here.iterdir()] == ["a.py"]


def test_a_file_is_run_anew_every_time(here: Path):
    # A grid that is edited while a notebook is open must not be the one from before.
    write(here / "a.py", "x = []")
    first = files.load("sweeps", "a.py")
    first.x.append(1)
    assert files.load("sweeps", "a.py").x == []
    write(here / "a.py", "x = 'another length'")
    assert files.load("sweeps", "a.py").x == "another length"


def test_names_are_sorted_and_told_once(here: Path):
    for name in ("10x", "2x", "b", "a", "_private", "100x"):
        write(here / "launch" / f"{name}.py", "def get_launcher(): ...")
    write(here / "launch" / "notes.txt", "get_launcher")
    write(here / "launch" / "script.py", "def main(argv): ...")
    write(here / "launch" / "local.py", "def get_launcher(): ...")
    others = ("_private", "notes", "script")
    mine = [name for name in files.names("launch") if name in ("10x", "2x", "b", "a", "100x", *others)]
    assert mine == ["a", "b", "2x", "10x", "100x"]
    assert files.names("launch").count("local") == 1
    scales = [name for name in files.names("experiments") if re.fullmatch(r"\d+m", name)]
    assert scales == sorted(scales, key=lambda name: int(name[:-1]))


@pytest.mark.parametrize("name", ["nothing", "nothing.py", "./nothing", "deep/nothing.py", "", "sweeps"])
def test_an_unknown_name_or_path_lists_the_names(name: str):
    with pytest.raises(FileError) as caught:
        files.load("sweeps", name)
    assert name in str(caught.value)
    assert "granularity_vs_count" in str(caught.value)


ERRORS = {
    "x = 1\n\nraise KeyError('gone')\n": (3, "KeyError"),
    "\n\n\ndef f():\n    return 1 / 0\n\n\nf()\n": (5, "ZeroDivisionError"),
    "import json\n\n\njson.loads('{')\n": (4, "JSONDecodeError"),
    "import there_is_no_such_module\n": (1, "ModuleNotFoundError"),
    "x = 1\ny = (\n": (2, "SyntaxError"),
    "if True:\nx = 1\n": (2, "IndentationError"),
    "x = 1\nassert x == 2, 'not two'\n": (2, "AssertionError"),
}


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize("source", ERRORS, ids=lambda source: ERRORS[source][1])
def test_a_file_that_raises_is_told_with_its_line(here: Path, source: str, relative: bool):
    path = write(here / "grids" / "odd.py", source)
    line, error = ERRORS[source]
    with pytest.raises(FileError) as caught:
        files.load("sweeps", "grids/odd.py" if relative else str(path))
    assert f"grids/odd.py, line {line}: {error}" in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_grid_function_that_raises_is_told_with_its_line(here: Path):
    path = write(
        here / "sweeps" / "odd.py", "def helper():\n    return [][0]\n\n\ndef get_grid(scale):\n    return helper()\n"
    )
    with pytest.raises(FileError, match=r"odd\.py, line 2: IndexError") as caught:
        load_grid("odd", "nano")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("source", ["", "def get_grid(scale):\n    return [{}]\n"])
def test_what_is_no_grid_is_told(here: Path, source: str):
    write(here / "sweeps" / "odd.py", source)
    with pytest.raises((FileError, GridError), match=r"odd\.py.*[Gg]rid"):
        load_grid("odd", "nano")


def test_a_grid_is_asked_for_its_scale(here: Path):
    source = "from slicedice.grid import Grid\n\n\ndef get_grid(scale):\n    return Grid([{'scale': scale}])\n"
    write(here / "sweeps" / "mine.py", source)
    assert load_grid("mine", "nano") == Grid([{"scale": "nano"}])


def test_dataclasses_with_postponed_annotations_can_be_defined(here: Path):
    source = (
        "from __future__ import annotations\nimport dataclasses\n\n\n@dataclasses.dataclass\nclass A:\n    b: int = 1\n"
    )
    write(here / "a.py", source)
    assert files.load("sweeps", "a.py").A().b == 1


def test_a_file_that_exits_is_told(here: Path):
    write(here / "a.py", "import sys\n\nsys.exit(3)\n")
    with pytest.raises(FileError, match="line 3: SystemExit"):
        files.load("sweeps", "a.py")
