"""Who holds a run: a process, by which it can be told whether it is gone for good."""

import dataclasses
import os
import platform
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROC = Path("/proc")


@dataclass(frozen=True)
class Holder:
    """A process, as told from all others of all machines.

    host: its machine's name, for people.
    machine: the boot of the machine, and the space in which the process has its number: containers have their own.
    pid: its number there.
    started: when, in the machine's ticks since it booted, which no change of a clock moves; 0 if not known.
    """

    host: str
    machine: str
    pid: int
    started: int

    @classmethod
    def here(cls) -> "Holder":
        """This process."""
        return cls(platform.node(), _machine(), os.getpid(), _started(os.getpid()) or 0)

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> "Holder | None":
        """A holder from what `as_dict` gave; None if it is damaged."""
        try:
            return cls(*(kind(content[name]) for name, kind in cls.__annotations__.items()))
        except (KeyError, OverflowError, TypeError, ValueError):
            return None

    def as_dict(self) -> dict[str, Any]:
        """As JSON types."""
        return dataclasses.asdict(self)

    @property
    def handle(self) -> str:
        """The process as one word."""
        return f"{self.machine}:{self.pid}:{self.started}"

    @classmethod
    def of_handle(cls, handle: str) -> "Holder":
        """The process of a `handle`.

        Raises:
          ValueError: it is none.
        """
        machine, pid, started = handle.split(":")
        return cls("", machine, int(pid), int(started))

    def is_here(self) -> bool:
        """Whether the process certainly runs on this machine, now."""
        return self.machine == _machine() and not self.is_gone()

    def is_gone(self) -> bool:
        """Whether the process has certainly ended; False as well if that cannot be told from here."""
        if self.machine != _machine():
            return False
        if _started(os.getpid()) is None:  # no /proc: only whether there is any process of that number
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return True
            except PermissionError:
                return False
            return False
        return _started(self.pid) != self.started


def _machine() -> str:
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink(PROC / "self/ns/pid")
    except OSError:
        return re.sub("[^A-Za-z0-9.-]", "_", f"{platform.node()}-{uuid.getnode():x}")
    return f"{boot}-{''.join(filter(str.isdigit, space))}"


def _started(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; None if there is no such process, or it is dead and only not yet waited for."""
    try:
        # The second field is the program's name, which may hold anything.
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])
