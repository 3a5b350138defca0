"""Processes that take steps in turns: each is asked, and sleeps while others are.

What is compared starts once, compiles, and then runs side by side with its competitors in time, so that a machine whose
speed drifts slows all of them.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from slicedice.launching.here import on_cores
from slicedice.machine import Slot

TURN_SECONDS = 1.5


class Process:
    """A script in a process of its own, which takes steps when it is asked to. said: what it told when it was ready."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], cores: frozenset[int] = frozenset()):
        with on_cores(Slot(cores, {})):
            self._process = subprocess.Popen(
                [sys.executable, *command],
                env=os.environ | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        self.said = self.answer()

    def ask(self) -> None:
        """Has it begin a turn, whose answer is to be read."""
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """What it says next."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(map(str, self._process.args))} failed")  # pyright: ignore[reportArgumentType]
        return json.loads(line)

    def turn(self) -> float:
        """Tokens a second, over some steps."""
        self.ask()
        return self.answer()

    def close(self) -> None:
        """Ends it."""
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


def serve(said: Any, step: Callable[[], Any], tokens: int) -> None:
    """Says it is ready; then, for each line on standard input, takes steps for a while and says tokens a second.

    Args:
      said: to say first.
      step: takes a step and returns when it is done.
      tokens: of a step.
    """
    print(json.dumps(said), flush=True)
    for _ in sys.stdin:
        seconds, begin = [], time.perf_counter()
        while time.perf_counter() - begin < TURN_SECONDS:
            before = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - before)
        print(tokens / statistics.median(seconds), flush=True)
