"""`plan --compile`: how far it is, and Ctrl-C, with a command that stands for the compiler."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slicedice import machine, sweep
from slicedice.cost import checking

PLAN = [
    "plan",
    "--grid",
    "granularity_vs_count",
    "--scale",
    "300m",
    "--seeds",
    "1",
    "--topology",
    "v5e:4x4",
    "--compile",
]
ANSWER = 'print(\'{"fits": true, "bytes": 1000, "traffic": 5.0, "seconds": 7.0}\')'


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(machine, "has_accelerator", lambda: False)
    monkeypatch.setattr(checking, "has_compiler", lambda: True)


def test_how_many_programs_there_are_is_told_and_each_is_counted(capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checking, "COMMAND", [sys.executable, "-c", ANSWER])
    assert sweep.main([*PLAN, "--only", "*-g1/4-n32-*"]) == 0
    first = capsys.readouterr().out.splitlines()[:2]
    assert first[0] == "1 program, 0 known from before."
    assert first[1].startswith("1 of 1: 300m-g1/4-n32-s8-")
    assert first[1].endswith("fits (7 s)")
    assert sweep.main([*PLAN, "--only", "*-g1/4-n*"]) == 0
    count, *lines = capsys.readouterr().out.splitlines()
    total = int(count.split()[0])
    assert count == f"{total} programs, 1 known from before."
    assert total > 2
    assert [line.partition(":")[0] for line in lines[:total]] == [f"{k} of {total}" for k in range(1, total + 1)]
    assert [line.endswith("(known from before)") for line in lines[:total]] == [True, *[False] * (total - 1)]


def test_a_child_that_dies_is_an_error_of_its_program_alone(capsys, monkeypatch: pytest.MonkeyPatch):
    once = "import os, pathlib; p = pathlib.Path('once'); first = not p.exists(); p.touch(); first and os.abort()\n"
    monkeypatch.setattr(checking, "COMMAND", [sys.executable, "-c", once + ANSWER])
    monkeypatch.setattr(machine, "cores", lambda: [0])
    assert sweep.main([*PLAN, "--only", "*-g1/4-n*"]) == 1
    said = capsys.readouterr().out
    assert said.count("not compiled: the compiler's process ended with status -6") == 1
    assert said.count("fits (7 s)") == int(said.split()[0]) - 1


DOOR = f"""
import signal, sys
from slicedice import machine, sweep
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell has started with &, as these tests
from slicedice.cost import checking
machine.has_accelerator, checking.has_compiler = lambda: False, lambda: True
machine.cores, machine.memory = lambda: [0, 1], lambda: 2**40
child = "import os, pathlib, time; pathlib.Path(f'child{{os.getpid()}}').touch(); time.sleep(100)"
checking.COMMAND = [sys.executable, "-c", child]
sys.exit(sweep.main({PLAN}))
"""


@pytest.mark.parametrize("whole_group", [True, False], ids=["terminal", "kill"])
def test_ctrl_c_ends_the_compilations_at_once_and_in_a_line(tmp_path: Path, whole_group: bool):
    """A terminal sends it to all of its foreground, `kill -INT` to one process."""
    environment = os.environ | {"TMPDIR": str(tmp_path / "scratch")}
    (tmp_path / "scratch").mkdir()
    door = subprocess.Popen(
        [sys.executable, "-c", DOOR],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(children := list(tmp_path.glob("child*"))) < 2:
        assert time.monotonic() < deadline, "no two programs are compiled at once"
        time.sleep(0.05)
    ids = [int(child.name.removeprefix("child")) for child in children]
    assert door.pid not in map(os.getpgid, ids), "one that is interrupted itself may be taken for one that failed"
    (os.killpg if whole_group else os.kill)(door.pid, signal.SIGINT)
    try:
        out, err = door.communicate(timeout=80)  # children sleep for 100 seconds
    finally:
        door.kill()
    assert door.returncode == 130
    assert err.splitlines() == ["Stopped. Nothing that was finished or saved is lost; the same command goes on."]
    assert [line.partition(",")[2] for line in out.splitlines()] == [" 0 known from before."]
    assert list(tmp_path.glob("child*")) == children, "others were begun"
    for id_ in ids:
        with pytest.raises(ProcessLookupError):
            os.kill(id_, 0)
    assert list((tmp_path / "scratch").iterdir()) == []
