"""Writers of clu's interface, and a package that declares them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from slicedice.writers.interface import ScalarWriter


class Recorder(ScalarWriter):
    """Keeps what it is given."""

    made: ClassVar[list["Recorder"]] = []

    def __init__(self, logdir: str):
        self.logdir, self.steps, self.settings, self.closed = logdir, [], {}, 0
        self.made.append(self)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        assert not self.closed
        self.steps.append((step, dict(scalars)))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        assert not self.settings
        self.settings = dict(hparams)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed += 1


class Lost(Recorder):
    """Loses its connection at the third write, and with it the way to close."""

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        if len(self.steps) == 2:
            raise ConnectionError("no route to host")
        super().write_scalars(step, scalars)

    def close(self) -> None:
        raise ConnectionError("no route to host either")


class Absent(Recorder):
    """Cannot be opened."""

    def __init__(self, logdir: str):
        raise OSError("no such server")


def touch(logdir: str) -> None:
    """No class of writers: calling it shows."""
    Path(logdir).mkdir(parents=True)


class Folder:
    """No class of writers either."""

    def __init__(self, logdir: str):
        touch(logdir)


ENTRY_POINTS = """[slicedice.writers]
recorder = tests.writers.recorded:Recorder
lost = tests.writers.recorded:Lost
absent = tests.writers.recorded:Absent
touch = tests.writers.recorded:touch
folder = tests.writers.recorded:Folder
nowhere = no_such_module:Writer
clu = clu.metric_writers:SummaryWriter
"""


def install(site: Path) -> Path:
    """Makes `site` a folder for Python's path, in which the package is installed."""
    package = site / "recorded-1.0.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: recorded\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text(ENTRY_POINTS)
    return site
