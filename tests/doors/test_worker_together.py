"""Workers that are to train one run together, and cannot find each other: told before anything is trained."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slicedice import work


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--processes", "-1"], ["--processes", "from 0"]),
        (["--processes", "2"], ["--processes", "--coordinator"]),
        (["--process", "0"], ["--processes", "neither"]),
        (["--processes", "2", "--process", "2", "--coordinator", "localhost:1"], ["--process", "from 0 to 1"]),
        (["--processes", "2", "--process", "0", "--coordinator", "localhost"], ["--coordinator", "HOST:PORT"]),
    ],
)
def test_processes_that_cannot_find_each_other_are_told(flags: list[str], words: list[str], tmp_path: Path, capsys):
    assert work.main(["--store", str(tmp_path), *flags, "0123456789ab"]) == 1
    said = capsys.readouterr().err
    assert all(word in said for word in words), said


def test_processes_that_jax_does_not_find_are_told(tmp_path: Path):
    """In a process of its own: JAX has to be asked before it does anything."""
    command = [sys.executable, "-m", "slicedice.work", "--store", str(tmp_path), "--processes", "0", "0123456789ab"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "JAX does not find out here" in done.stderr
    assert "--coordinator" in done.stderr


def test_several_processes_take_their_runs_as_arguments(tmp_path: Path, capsys):
    several = ["--processes", "2", "--process", "0", "--coordinator", "localhost:1"]
    assert work.main(["--store", str(tmp_path), *several]) == 1
    assert "or the runs as arguments" in capsys.readouterr().err
