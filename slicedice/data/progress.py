"""Shows how far the building of a token store is: a bar on a terminal, else a line now and then."""

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from slicedice.data import writer

PLAIN_SECONDS = 30.0
"""Between two lines where the output is no terminal."""


class Bar:
    """Shows progress between entering and leaving it.

    Args:
      console: where; a bar that is over leaves nothing there.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("reading", total=None)
        self._began = self._said = time.monotonic()
        self._first: int | None = None

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def show(self, progress: writer.Progress) -> None:
        """Shows it, as a share of the tokens that are wanted, else of the bytes there are."""
        done, total = progress.tokens, progress.wanted
        if not total:
            done, total = progress.position, progress.size
        # A build that goes on with what an earlier one left has tokens from the start.
        self._first = progress.tokens if self._first is None else self._first
        seconds = max(1e-9, time.monotonic() - self._began)
        told = f"{progress.tokens:,} tokens, {(progress.tokens - self._first) / seconds / 1e6:.2f}M a second"
        if progress.problems:
            told += f", {progress.problems:,} documents passed over"
        if self._bar.disable:
            if time.monotonic() - self._said > PLAIN_SECONDS:
                self._said = time.monotonic()
                share = f"{min(1.0, done / total):.0%}, " if total else ""
                self._console.print(f"{share}{told}", highlight=False, soft_wrap=True)
            return
        self._bar.update(self._task, description=told, completed=min(done, total), total=total or None)
