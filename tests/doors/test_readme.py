"""The README's commands that train nothing work as written."""

import re
import shlex
from pathlib import Path

import pytest

from slicedice import recipe, sweep

TEXT = (Path(__file__).parents[2] / "README.md").read_text()
SWEEPS = re.findall(r"^python -m slicedice\.sweep +((?:plan|status|why|diff) .*?)(?:  #.*)?$", TEXT, re.MULTILINE)


def test_there_are_commands():
    assert {command.split()[0] for command in SWEEPS} == {"plan", "status", "why", "diff"}


@pytest.mark.parametrize("command", SWEEPS)
def test_a_command_of_the_readme_works(command: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sweep.main(shlex.split(command)) == 0
    assert len(capsys.readouterr().out.splitlines()) > 4


def test_the_readmes_recipe_answers(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (command,) = re.findall(r"^python -m slicedice\.recipe (.*)$", TEXT, re.MULTILINE)
    assert recipe.main(shlex.split(command)) == 1  # there are no results to answer from
    assert "python -m slicedice.sweep --grid next_runs.py" in capsys.readouterr().out


def test_the_readme_lists_every_grid_as_its_file_has_it():
    rows = re.findall(r"^\| `(\w+)` \| .*? \| ([\d,]+)", TEXT, re.MULTILINE)
    sweeps = Path(__file__).parents[2] / "sweeps"
    listed = {name: int(count.replace(",", "")) for name, count in rows}
    for path in sweeps.glob("*.py"):
        counted = re.search(r"Runs: (\d+)", path.read_text())
        assert counted is not None
        assert listed[path.stem] == int(counted[1])
