"""Compiles what a worker trains next while it trains, where that takes nothing from the training: on accelerators."""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("slicedice.work")

NAME = "compiles ahead"
"""Of the threads that do."""


def pays() -> bool:
    """Whether the processor has nothing better to do. Those that train together compile together, and not ahead."""
    import jax

    return jax.process_count() == 1 and jax.default_backend() != "cpu"


def is_busy() -> bool:
    """Whether something is compiled ahead in this process, whoever had it begun."""
    return any(thread.name == NAME for thread in threading.enumerate())


class Ahead:
    """One compilation after the other, each in a thread that no end of the process waits for."""

    def __init__(self):
        self._thread: threading.Thread | None = None

    def begin(self, work: Callable[[], object]) -> None:
        """Has `work` done once what was begun before is. If it fails, that is told, and whoever needs it meets it."""
        before = self._thread

        def run() -> None:
            if before:
                before.join()
            try:
                work()
            except Exception as error:
                log.info("nothing was compiled ahead: %s: %s", type(error).__name__, error)

        self._thread = threading.Thread(target=run, name=NAME, daemon=True)
        self._thread.start()

    def wait(self, stop: Callable[[], bool]) -> bool:
        """Waits until all is done or `stop` says so; returns whether there was anything since this was last asked."""
        thread, self._thread = self._thread, None
        while thread and thread.is_alive() and not stop():
            thread.join(0.2)
        return thread is not None
