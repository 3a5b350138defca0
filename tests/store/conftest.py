"""A run's folder, and processes that claim it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slicedice.store import RunFolder, Store, attempt
from tests.store.agents import Agent
from tests.store.clocks import Clock


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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(attempt, "time", clock)
    return clock
