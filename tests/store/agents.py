"""Processes of their own that claim runs, and do what a test tells them."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import slicedice

AGENT = """
import json, sys, time
from slicedice.store import Kind, RunFolder, attempt, holder
from slicedice.store.files import as_path
machine, beat, silence = json.loads(sys.argv[2])
if machine:
    holder._machine = lambda: machine
attempt.BEAT_SECONDS, attempt.SILENCE_SECONDS = beat, silence
names = {"folder": RunFolder(as_path(sys.argv[1])), "Kind": Kind, "time": time}
print("ready", flush=True)
for line in sys.stdin:
    how, text = json.loads(line)
    print(json.dumps(eval(text, names) if how == "ask" else exec(text, names)), flush=True)
"""


class Agent:
    """A process with a run's folder at hand, as `folder`; it has begun when this returns.

    machine: what it takes its machine for; "" for what it is.
    beat, silence: seconds between its signs of life, and after which it takes itself for lost.
    """

    def __init__(self, folder: Path, machine: str = "", beat: float = 0.05, silence: float = 60.0):
        self.process = subprocess.Popen(
            [sys.executable, "-c", AGENT, str(folder), json.dumps([machine, beat, silence])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(slicedice.__file__).parents[1])},
        )
        assert self._read() == "ready"

    def begin(self) -> int | None:
        """Claims the run and gives signs of life from now on; returns the attempt's number, None if it has none."""
        self.do("claim = folder.claim()\nif claim: claim.__enter__()")
        return self.ask("claim and claim.number")

    def ask(self, expression: str) -> Any:
        """The value of an expression in the process."""
        self.tell("ask", expression)
        return self.answer()

    def do(self, statements: str) -> None:
        """Has the process do something; returns when it is done."""
        self.tell("do", statements)
        self.answer()

    def tell(self, how: str, text: str) -> None:
        """Sends what to `ask` or `do`, without waiting."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([how, text]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """What came of the last `tell`."""
        return json.loads(self._read())

    def kill(self) -> None:
        """Ends the process as a power cut would; it is not waited for."""
        self.process.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Ends the process, stopped or not, and waits for it."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the process ended with status {self.process.wait()}"
        return line.rstrip("\n")


def contents(path: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
