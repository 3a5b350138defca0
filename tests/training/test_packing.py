"""How many lanes are chosen, by memory and by what a measurement says."""

import json
from pathlib import Path
from typing import Any

import pytest

from slicedice.training import packing


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "slicedice" / "lanes"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Made up: `fitting` lanes by the compiler, `room` in truth, and the `seconds` of their step, one's being 1."""
    about: dict[str, Any] = {"fitting": 64, "room": 64, "seconds": {}, "asked": []}

    def of_lanes(program: Any, count: int, *_: Any) -> float:
        about["asked"].append(count)
        if count > about["room"]:
            raise packing.jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room")
        return about["seconds"].get(count, 1.5)

    monkeypatch.setattr(packing, "_fitting", lambda program: about["fitting"])
    monkeypatch.setattr(packing, "_seconds", lambda step: 1.0)
    monkeypatch.setattr(packing, "_seconds_of_lanes", of_lanes)
    return about


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("most", "about", "lanes", "asked"),
    [
        (8, {}, 8, [8]),
        (8, {"fitting": 3}, 3, [3]),
        (8, {"fitting": 1}, 1, []),
        (8, {"room": 4}, 4, [8, 4]),
        (8, {"room": 1}, 1, [8, 4, 2]),
        (8, {"seconds": {8: 8.0}}, 1, [8]),
        (8, {"seconds": {8: 7.4}}, 1, [8]),
        (8, {"seconds": {8: 7.2}}, 8, [8]),
        (1, {}, 1, []),
    ],
)
def test_as_many_as_fit_if_that_pays(most: int, about: dict, lanes: int, asked: list[int], machine, program):
    machine |= about
    assert packing.lanes_that_pay(program(), most) == lanes
    assert machine["asked"] == asked


def test_what_was_measured_is_known(kept: Path, machine, program):
    assert packing.lanes_that_pay(program(), 8) == 8
    assert packing.lanes_that_pay(program(), 5) == 5  # fewer pay too, near enough
    assert machine["asked"] == [8]
    assert packing.lanes_that_pay(program(), 20) == 20  # more were never tried
    assert machine["asked"] == [8, 20]
    machine["fitting"] = 30
    assert packing.lanes_that_pay(program(), 50) == 30
    assert packing.lanes_that_pay(program(), 60) == 30  # more do not fit
    assert machine["asked"] == [8, 20, 30]
    (file,) = kept.iterdir()
    assert json.loads(file.read_text()) == {"lanes": 30, "gain": 20.0, "tried": 50}
    file.write_text("{")
    assert packing.lanes_that_pay(program(), 60) == 30
    assert len(machine["asked"]) == 4


def test_programs_are_measured_each_for_itself(kept: Path, machine, program):
    packing.lanes_that_pay(program(), 8)
    packing.lanes_that_pay(program({"model.layers": 1}), 8)
    assert machine["asked"] == [8, 8]
    assert len(list(kept.iterdir())) == 2


@pytest.mark.usefixtures("kept")
def test_nothing_is_made_up_about_a_real_device(program):
    """What it takes here is measured, and small models of which a few fit are found to fit."""
    found = packing.measure(program(), 3)
    assert found["lanes"] in (1, 3)
    assert (found["gain"] > packing.LEAST_GAIN) == (found["lanes"] == 3)
    assert packing._fitting(program()) > 3


def test_a_cache_that_cannot_be_written_is_done_without(machine, program, tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert packing.lanes_that_pay(program(), 8) == 8
