"""A user's grid file: found by name or by path, and every error in it named by its line."""

from pathlib import Path

import pytest

from slicedice.files import FileError
from slicedice.grid import GridError, load_config, load_grid

GRID = """
from slicedice.grid import Grid, axis

def get_grid(scale):
    return Grid(axis("scale", [scale]), seeds=3)
"""


def test_by_name_and_by_path(tmp_path: Path, monkeypatch):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.py").write_text(GRID)
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "sweeps/mine.py", str(tmp_path / "sweeps" / "mine.py")):
        grid = load_grid(name, "nano")
        assert (grid.points, grid.seeds) == ([{"scale": "nano"}], 3)
    # The working directory comes before the grids that come with the project.
    (tmp_path / "sweeps" / "granularity_vs_count.py").write_text(GRID)
    assert load_grid("granularity_vs_count", "50m").seeds == 3


def test_unknown_names(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match=r"unknown name 'granularity'.*granularity_vs_count"):
        load_grid("granularity", "nano")
    with pytest.raises(FileError, match=r"there is no file sweeps/mine.py.*granularity_vs_count"):
        load_grid("sweeps/mine.py", "nano")


ERRORS = [
    pytest.param("import no_such_module_anywhere\n", 1, "ModuleNotFoundError", id="import"),
    pytest.param("def get_grid(scale):\n    x = (1,\n    return x\n", 2, "SyntaxError", id="syntax"),
    pytest.param("\n\ndef get_grid(scale):\n    return 1 / 0\n", 4, "ZeroDivisionError", id="in get_grid"),
    pytest.param(
        # Raised in the library, two calls below the user's line.
        "from slicedice.grid import axis, product\n\ndef get_grid(scale):\n"
        "    a = axis('a', [1])\n    return product(a, a)\n",
        5,
        "ValueError: two grids set a",
        id="in the algebra",
    ),
    pytest.param(
        "from slicedice.spec import moe_layer\n\ndef cell():\n    return moe_layer(s=8, g='0.25')\n\n"
        "def get_grid(scale):\n    return cell()\n",
        4,
        "SpecError: g = '0.25'",
        id="in the spec",
    ),
]


@pytest.mark.parametrize(("text", "line", "message"), ERRORS)
@pytest.mark.parametrize("by", ["absolute", "relative", "name"])
def test_errors_name_the_line(text: str, line: int, message: str, by: str, tmp_path: Path, monkeypatch):
    path = tmp_path / "sweeps" / "broken.py"
    path.parent.mkdir()
    path.write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError) as error:
        load_grid({"absolute": str(path), "relative": "sweeps/broken.py", "name": "broken"}[by], "nano")
    assert f"broken.py, line {line}: {message}" in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "def get_grid(scale):\n    return [{'seed': 1}]\n",
            r"get_grid\('nano'\) in .*bad.py has to return.*'seed': 1",
        ),
        ("def get_grid(scale):\n    pass\n", r"get_grid\('nano'\) in .*bad.py has to return.*not None"),
    ],
)
def test_functions_that_return_no_grid(text: str, message: str, tmp_path: Path):
    (tmp_path / "bad.py").write_text(text)
    with pytest.raises(GridError, match=message):
        load_grid(str(tmp_path / "bad.py"), "nano")


def test_a_file_without_the_function(tmp_path: Path):
    (tmp_path / "bad.py").write_text("get_gird = get_grid = None\n")
    with pytest.raises(FileError, match=r"bad\.py has no function get_grid: .*sweeps/"):
        load_grid(str(tmp_path / "bad.py"), "nano")
    with pytest.raises(FileError, match=r"bad\.py has no function get_config: .*experiments/"):
        load_config(str(tmp_path / "bad.py"))


def test_an_experiment_returns_a_config(tmp_path: Path):
    assert load_config("smoke").scale == "smoke"
    (tmp_path / "bad.py").write_text("def get_config():\n    return {'seed': 1}\n")
    with pytest.raises(GridError, match=r"get_config\(\) in .*bad.py has to return a ConfigDict.*'seed': 1"):
        load_config(str(tmp_path / "bad.py"))
    (tmp_path / "bad.py").write_text("def get_config():\n    return 1 / 0\n")
    with pytest.raises(FileError, match=r"bad.py, line 2: ZeroDivisionError"):
        load_config(str(tmp_path / "bad.py"))
