"""Processes under torture: sweeps and their workers, on machines that are two by name, with clocks that can be set."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import slicedice
from slicedice.machine import Slot

BEAT_SECONDS, SILENCE_SECONDS = 0.5, 6.0
"""Between signs of life, and after which a silent worker has lost its run: less than there is, so that both come."""

# Every Python process of a machine reads this before anything else. What slicedice logs goes to a file for all of them
# as well, which is on no small disk and lacks nothing. Between looking whether a run is free and claiming it some time
# may pass, so that of those who begin at once several want it; not where another may give a sign of life meanwhile.
SITE = """
import faulthandler
import logging
import random
import signal
import time
from slicedice.store import Claim, attempt, holder

stacks = open({stacks!r}, "a")
faulthandler.register(signal.SIGUSR2, stacks)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of what a shell's script starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
handler = logging.FileHandler({said!r}, delay=True)
handler.setFormatter(logging.Formatter("%(process)d %(levelname)s %(message)s"))
logging.getLogger("slicedice").addHandler(handler)

attempt.BEAT_SECONDS, attempt.SILENCE_SECONDS = {beat}, {silence}
real, now, take = holder._machine(), time.time, Claim.take
holder._machine = lambda: real + {suffix!r}

def take_late(claim):
    before = attempt.Attempt(claim.run, claim.number - 1)
    if before.holder is None or before.holder.is_gone() or before.ending():
        time.sleep(random.uniform(0.0, 0.5))
    return take(claim)

Claim.take = take_late

def told():
    try:
        with open({clock!r}) as file:
            return now() + float(file.read())
    except (OSError, ValueError):
        return now()

time.time = told
"""


def said(folder: Path) -> Path:
    """Where all that slicedice logs is, on whichever machine: lines of PROCESS LEVEL MESSAGE."""
    return folder / "said.txt"


def stacks(folder: Path) -> Path:
    """Where a process of any machine writes what it is at when it is sent SIGUSR2."""
    return folder / "stacks.txt"


class Machine:
    """This machine under another name: of its processes those of another name see no more than signs of life.

    Args:
      folder: of all machines; see `said` and `stacks`. name: of this one.
    """

    def __init__(self, folder: Path, name: str):
        self.name, self._folder, self._clock = name, folder / name, folder / name / "clock"
        self._folder.mkdir()
        site = SITE.format(
            beat=BEAT_SECONDS,
            silence=SILENCE_SECONDS,
            suffix=f"-{name}",
            clock=str(self._clock),
            said=str(said(folder)),
            stacks=str(stacks(folder)),
        )
        (self._folder / "sitecustomize.py").write_text(site)

    def set_clock(self, seconds: float) -> None:
        """Sets its clock ahead, or back."""
        new = self._clock.with_suffix(".new")
        new.write_text(repr(seconds))
        new.replace(self._clock)

    @property
    def environment(self) -> dict[str, str]:
        """For its processes."""
        paths = os.pathsep.join([str(self._folder), str(Path(slicedice.__file__).parents[1])])
        return os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}


class Command:
    """A command that somebody has started.

    Args:
      words: of Python. machine: where. folder: its working folder, and where what it prints goes.
      slot: the cores that it has, and more for its environment; None for all cores.
    """

    def __init__(self, words: list[str], machine: Machine, folder: Path, slot: Slot | None = None):
        self.words, self.machine, self.signals = words, machine, list[signal.Signals]()
        self._log = folder / f"{words[1]}-{len(list(folder.glob('*.log')))}.log"
        cores = ["taskset", "--cpu-list", ",".join(map(str, sorted(slot.cores)))] if slot else []
        with open(self._log, "wb") as output:
            self.process = subprocess.Popen(
                [*cores, sys.executable, *words],
                cwd=folder,
                env=machine.environment | (slot.environment if slot else {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def said(self) -> str:
        """All that it printed."""
        return self._log.read_text(errors="replace")

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal, which may end it."""
        self.signals.append(number)
        self.process.send_signal(number)


@dataclass(frozen=True)
class Process:
    """A process as told from a later one of the same number."""

    pid: int
    started: int

    def is_alive(self) -> bool:
        """Whether it is there, and no zombie."""
        now = stat(self.pid)
        return now is not None and now[1] == self.started and now[0] not in "ZX"

    def send(self, number: signal.Signals) -> bool:
        """Sends a signal, if it is there; returns whether it was."""
        if not self.is_alive():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def stat(pid: int) -> tuple[str, int] | None:
    """State and start, in ticks, of a process; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[0], int(fields[19])


def cmdline(pid: int) -> list[str]:
    """The words of a process's command; none if there is no such process."""
    try:
        return [os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
    except OSError:
        return []


def workers(store: Path) -> list[Process]:
    """All workers of a store, whoever started them, and also those whose parent is gone."""
    found = []
    for pid in [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]:
        if {"slicedice.work", str(store)} <= {*cmdline(pid)} and (now := stat(pid)):
            found.append(Process(pid, now[1]))
    return [process for process in found if process.is_alive()]


class SmallDisk:
    """A file system in memory, of so many bytes, that can be filled to the last; to be used as a context."""

    def __init__(self, folder: Path, size: int):
        self.folder, self._size, self._filler = folder, size, folder / "filler"

    def __enter__(self) -> "SmallDisk":
        self.folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={self._size}", "tmpfs", str(self.folder)]
        subprocess.run(command, check=True, capture_output=True)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def fill(self, but: int) -> None:
        """Leaves at most so many bytes."""
        with open(self._filler, "ab") as file:
            while (free := os.statvfs(self.folder)).f_bavail * free.f_bsize > but:
                try:
                    os.posix_fallocate(file.fileno(), file.tell(), free.f_bavail * free.f_bsize - but)
                    file.seek(0, os.SEEK_END)
                except OSError:  # others write meanwhile
                    but += 65536

    def make_room(self) -> None:
        """Takes away what it was filled with."""
        self._filler.unlink(missing_ok=True)

    @staticmethod
    def can_be(folder: Path) -> bool:
        """Whether this process may mount one."""
        try:
            with SmallDisk(folder, 2**20):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False
