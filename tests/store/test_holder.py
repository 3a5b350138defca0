"""Whether a process is gone for good, as told from this machine and from another one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slicedice.store import holder
from slicedice.store.holder import Holder


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def of(process: subprocess.Popen) -> Holder:
    here = Holder.here()
    return Holder(here.host, here.machine, process.pid, holder._started(process.pid) or 0)


def wait_for_end(process: subprocess.Popen) -> None:
    """Until it has ended, and still has its number, since nobody has waited for it."""
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def test_this_process_is_here():
    here = Holder.here()
    assert here.pid == os.getpid()
    assert here.is_here()
    assert not here.is_gone()
    assert here == Holder.here()


def test_a_process_is_gone_when_it_has_ended_also_before_it_is_waited_for(sleeper):
    other = of(sleeper)
    assert other.is_here()
    sleeper.send_signal(signal.SIGSTOP)
    assert not other.is_gone(), "it can be woken up"
    sleeper.send_signal(signal.SIGCONT)
    assert not other.is_gone()
    sleeper.kill()
    wait_for_end(sleeper)
    assert other.is_gone()
    assert not other.is_here()
    sleeper.wait()
    assert other.is_gone()


def test_another_process_of_the_same_number_is_another(sleeper):
    other = of(sleeper)
    assert Holder(other.host, other.machine, other.pid, other.started - 1).is_gone()


def test_of_another_machine_nothing_is_certain(sleeper):
    """Nor of another container on this one, where numbers mean other processes."""
    other = of(sleeper)
    for pid in (other.pid, 2**30):
        elsewhere = Holder(other.host, f"{other.machine}0", pid, other.started)
        assert not elsewhere.is_gone()
        assert not elsewhere.is_here()


@pytest.mark.skipif(not holder.PROC.is_dir(), reason="on Linux /proc says so")
def test_a_programs_name_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "7").mkdir()
    fields = ["S", *map(str, range(4, 53))]
    for name in ("python", "a) Z 1 (b", "x y) ", "\n"):
        (tmp_path / "7" / "stat").write_text(f"7 ({name}) {' '.join(fields)}\n")
        monkeypatch.setattr(holder, "PROC", tmp_path)
        assert holder._started(7) == 22


def test_without_proc_a_number_that_nobody_has_is_gone(sleeper, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(holder, "PROC", tmp_path)
    here = Holder.here()
    other = Holder(here.host, here.machine, sleeper.pid, 0)
    assert here.is_here()
    assert other.is_here()
    sleeper.kill()
    sleeper.wait()
    assert other.is_gone()


def test_it_is_read_back_as_it_was_and_by_its_handle():
    here = Holder.here()
    assert Holder.read(here.as_dict()) == here
    named = Holder.of_handle(here.handle)
    assert (named.machine, named.pid, named.started) == (here.machine, here.pid, here.started)
    assert named.is_here()


@pytest.mark.parametrize("handle", ["", "12345", "a:b:c", "a:1:2:3", "a:1", "a:1:"])
def test_what_is_no_handle(handle: str):
    with pytest.raises(ValueError, match=r"."):
        Holder.of_handle(handle)
