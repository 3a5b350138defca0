"""The metrics file: what a reader makes of it, and how it is cut when training goes on."""

import errno
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from slicedice.store import metrics

NAMES = ["loss", *(f"metric_{i}" for i in range(1, 10_000))]


def line(step: int, **values: float) -> str:
    return json.dumps({"step": step, **values}) + "\n"


def write(path: Path, steps: range, torn: str = "", count: int = 1) -> str:
    """Writes whole lines of so many metrics and a torn one; returns the whole ones."""
    whole = "".join(line(step, **dict.fromkeys(NAMES[:count], 2.0)) for step in steps)
    path.write_text(whole + torn)
    return whole


TORN = ['{"step": 5, "lo', '{"step": 5}', "\x00" * 30, "\x00" * 30 + "\n", '{"st\n', "[5]\n", '{"loss": 1.0}\n']


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_what_is_written_is_read(path: Path, rng: np.random.Generator):
    records = [{"step": i, "loss": float(x), "dead": i} for i, x in enumerate(rng.normal(size=20))]
    writer = metrics.Writer(path)
    writer.begin(0)
    for i, record in enumerate(records):
        writer.write(record)
        # A line is on its way to disk at once: what a killed worker wrote can be read.
        assert metrics.last_step(path) == i
    writer.close()
    assert list(metrics.read(path)) == records


def test_a_file_that_is_not_there_is_empty(path: Path):
    assert list(metrics.read(path)) == []
    assert metrics.last_step(path) is None
    assert metrics.tail_means(path, 5) == {}
    metrics.cut(path, 0)
    assert not path.exists()


@pytest.mark.parametrize("torn", TORN)
def test_a_torn_last_line_is_not_read(path: Path, torn: str):
    write(path, range(5), torn)
    assert [record["step"] for record in metrics.read(path)] == list(range(5))
    assert metrics.last_step(path) == 4
    assert metrics.tail_means(path, 2) == {"loss": 2.0}


@pytest.mark.parametrize("torn", [torn for torn in TORN if torn.endswith("\n")])
def test_nothing_behind_a_torn_line_is_read(path: Path, torn: str):
    # Where a line was torn, nobody knows what became of the steps behind it.
    whole = write(path, range(3), torn)
    path.write_text(path.read_text() + line(4, loss=9.0))
    assert [record["step"] for record in metrics.read(path)] == [0, 1, 2]
    metrics.cut(path, 9)
    assert path.read_text() == whole


@pytest.mark.parametrize("torn", TORN)
@pytest.mark.parametrize("begin", [0, 3, 5])
def test_training_goes_on_as_if_it_had_never_stopped(path: Path, torn: str, begin: int):
    whole = write(path, range(5), torn)
    writer = metrics.Writer(path)
    writer.begin(begin)
    for step in range(begin, 7):
        writer.write({"step": step, "loss": 2.0})
    writer.close()
    assert path.read_text() == whole + line(5, loss=2.0) + line(6, loss=2.0)


def test_lines_past_the_checkpoint_are_cut(path: Path):
    write(path, range(9))
    metrics.cut(path, 4)
    assert path.read_text() == "".join(line(step, loss=2.0) for step in range(4))
    metrics.cut(path, 0)
    assert path.read_text() == ""


@pytest.mark.parametrize("width", [1000, 4096, 5000, 100_000])
def test_the_last_step_is_found_behind_lines_of_any_length(path: Path, width: int):
    whole = write(path, range(3), count=width // 12)
    assert len(whole) // 3 > width
    assert metrics.last_step(path) == 2
    path.write_text(whole + whole[: width // 2])
    assert metrics.last_step(path) == 2
    metrics.cut(path, 2)
    assert metrics.last_step(path) == 1


def test_the_last_step_is_found_in_a_long_file(path: Path):
    write(path, range(2000))
    assert metrics.last_step(path) == 1999


def test_tail_means_are_means_of_the_last_steps(path: Path, rng: np.random.Generator):
    losses, loads = rng.normal(size=(2, 70))
    path.write_text("".join(line(i, loss=a, load=b) for i, (a, b) in enumerate(zip(losses, loads, strict=True))))
    for count in (1, 50, 70, 1000):
        expected = {"loss": losses[-count:].mean(), "load": loads[-count:].mean()}
        assert metrics.tail_means(path, count) == pytest.approx(expected, rel=1e-12)


def test_what_is_no_finite_number_is_null(path: Path):
    # JSON has no word for these, and readers other than Python's refuse a file that does.
    writer = metrics.Writer(path)
    for step, loss in enumerate([1.0, math.nan, math.inf, -math.inf, 3.0]):
        writer.write({"step": step, "loss": loss, "load": 2.0})
    writer.close()
    assert [record["loss"] for record in metrics.read(path)] == [1.0, None, None, None, 3.0]
    assert path.read_text().count("null") == 3
    assert metrics.last_step(path) == 4
    # A mean over steps of which one has no value has none either.
    assert metrics.tail_means(path, 2) == {"loss": None, "load": 2.0}
    assert metrics.tail_means(path, 1) == {"loss": 3.0, "load": 2.0}


def test_seconds_per_step_is_the_median(path: Path, monkeypatch: pytest.MonkeyPatch):
    # The first gap holds the compilation of the program, and one step waited for a checkpoint.
    times = iter([100.0, 130.0, 131.0, 132.0, 142.0, 143.5])
    monkeypatch.setattr("slicedice.store.metrics.time.monotonic", lambda: next(times))
    writer = metrics.Writer(path)
    assert writer.seconds_per_step() is None
    writer.write({"step": 0})
    assert writer.seconds_per_step() is None
    for step in range(1, 6):
        writer.write({"step": step})
    assert writer.seconds_per_step() == 1.5
    writer.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full is Linux's /dev/full")
def test_a_full_disk_is_told():
    writer = metrics.Writer(Path("/dev/full"))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
        writer.write({"step": 0})
    assert caught.value.errno == errno.ENOSPC
    writer.close()


def test_a_line_that_only_half_fits_is_a_full_disk(path: Path):
    class Half:
        def write(self, content: bytes) -> int:
            return len(content) // 2

        def close(self) -> None:
            pass

    writer = metrics.Writer(path)
    writer.close()
    writer._file = Half()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
        writer.write({"step": 0})
    assert caught.value.errno == errno.ENOSPC
