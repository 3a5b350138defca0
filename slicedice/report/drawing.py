"""Draws many figures at once, in processes of their own: `python -m slicedice.report.drawing`, tasks on standard input.

They are begun anew rather than forked, since whoever asks may have threads, and what they draw is what one would.
"""

import contextlib
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from slicedice import machine
from slicedice.grid import Figure
from slicedice.report.figures import draw
from slicedice.report.results import Row

FIGURES_A_PROCESS = 4
"""A process of its own has at least so many to draw, since it takes a second to begin."""


@dataclass(frozen=True)
class Task:
    """A figure to draw into `folder` from the rows that it reads; `evaluation_set` is "" for the mean over all."""

    figure: Figure
    rows: list[Row]
    folder: Path
    evaluation_set: str = ""

    @property
    def has_values(self) -> bool:
        """Whether some run has what it shows."""
        return any(row["state"] == "done" and row.get(self.figure.y) is not None for row in self.rows)

    @property
    def files(self) -> tuple[Path, Path]:
        """As PNG and as SVG."""
        return self.folder / f"{self.figure.name}.png", self.folder / f"{self.figure.name}.svg"


def draw_all(tasks: list[Task], everything: list[Row]) -> None:
    """Draws, with as many processes as there are cores and figures enough for.

    Args:
      tasks: the figures.
      everything: the rows that noise is known from.
    """
    count = max(1, min(len(machine.cores()), len(tasks) // FIGURES_A_PROCESS))
    # Dealt in turn, the largest first, so that each has about as much to draw.
    largest = sorted(tasks, key=lambda task: -len(task.rows))
    own, *others = [largest[i::count] for i in range(count)]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_process(share, everything)) for share in others]
        _draw(own, everything)
        for process, share in zip(processes, others, strict=True):
            if process.wait() != 0:
                _draw(share, everything)  # which tells what the matter is


def _draw(tasks: list[Task], everything: list[Row]) -> None:
    for task in tasks:
        draw(task.figure, task.rows, task.folder, everything)


@contextlib.contextmanager
def _process(tasks: list[Task], everything: list[Row]) -> Iterator[subprocess.Popen]:
    """A process that draws; it does not outlive the block."""
    command = [sys.executable, "-m", "slicedice.report.drawing"]
    # In a session of its own, since Ctrl-C is told by whoever waits for it.
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:  # it has just died, as its status tells
            pickle.dump((tasks, everything), process.stdin)
        yield process
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    _draw(*pickle.load(sys.stdin.buffer))
