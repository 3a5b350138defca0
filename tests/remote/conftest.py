"""A bucket of an emulated service, empty for each test."""

import importlib.util
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slicedice.store import RunFolder, Store
from slicedice.store.files import as_path
from tests.remote.gcs_emulator import Bucket, Emulator
from tests.store.agents import Agent

if importlib.util.find_spec("gcsfs") is None:  # imported where the product does, which has a say in how
    collect_ignore_glob = ["test_*.py"]

NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def _service() -> Iterator[Emulator]:
    with Emulator() as emulator, pytest.MonkeyPatch.context() as patch:
        for name, value in emulator.environment.items():
            patch.setenv(name, value)
        yield emulator


@pytest.fixture
def emulator(_service: Emulator) -> Iterator[Emulator]:
    """The service, that does all it is asked for at once until a test has it do otherwise."""
    yield _service
    _service.latency, _service.fault = 0.0, lambda method, path: 0


@pytest.fixture
def bucket(emulator: Emulator) -> Bucket:
    """An empty bucket."""
    name = f"bucket-{next(NUMBERS)}"
    emulator.buckets[name] = Bucket(name)
    return emulator.buckets[name]


@pytest.fixture
def root(bucket: Bucket) -> Path:
    """A folder in it."""
    return as_path(f"gs://{bucket.name}/some/store")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This machine's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "slicedice"


@pytest.fixture
def run(root: Path, tiny) -> RunFolder:
    """A run that was made and not trained."""
    spec, execution = tiny()
    made = Store(root).create().run(spec)
    made.create(spec, execution)
    return made


@pytest.fixture
def agents(run: RunFolder) -> Iterator[Callable[..., Agent]]:
    """Starts an `Agent` at the run; all end with the test."""
    started: list[Agent] = []

    def start(**settings) -> Agent:
        started.append(Agent(run.path, **settings))
        return started[-1]

    yield start
    for agent in started:
        agent.close()
