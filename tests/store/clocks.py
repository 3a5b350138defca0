"""A clock that moves only when somebody waits."""

from collections.abc import Callable


class Clock:
    """Stands for `time` where others wait for signs of life.

    Attributes:
      now: what its clocks say.
      meanwhile: called whenever somebody has waited.
    """

    def __init__(self):
        self.now = 1e9
        self.meanwhile: Callable[[], None] = lambda: None

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.meanwhile()
