"""A run's folder, processes that claim it, and a clock that moves only when somebody waits."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slicedice.store import RunFolder, Store, attempt
from tests.store.agents import Agent


@pytest.fixture
def folder(tmp_path: Path, tiny) -> RunFolder:
    """A run that was made and not trained."""
    spec, execution = tiny()
    run = Store(tmp_path / "store").create().run(spec)
    run.create(spec, execution)
    return run


@pytest.fixture
def agents(folder: RunFolder) -> Iterator[Callable[..., Agent]]:
    """Starts an `Agent` at the run; all end with the test."""
    started: list[Agent] = []

    def start(**settings) -> Agent:
        started.append(Agent(folder.path, **settings))
        return started[-1]

    yield start
    for agent in started:
        agent.close()


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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(attempt, "time", clock)
    return clock
