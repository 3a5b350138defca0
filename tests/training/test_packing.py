"""How many lanes are chosen, by memory and by what a measurement says."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slicedice.training import Lanes, Program, packing


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "slicedice" / "lanes"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Made up: `fitting` lanes by the compiler, `room` in truth, and the `seconds` of their step, one's being 1."""
    about: dict[str, Any] = {"fitting": 64, "room": 64, "seconds": {}, "asked": [], "shared": []}

    def of_lanes(lanes: Lanes, batches: Sequence[np.ndarray], *_: Any) -> float:
        about["asked"].append(lanes.width)
        about["shared"].append(all(np.array_equal(batch, batches[0]) for batch in batches))
        if lanes.width > about["room"]:
            raise packing.jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no room")
        return about["seconds"].get(lanes.width, 1.5)

    monkeypatch.setattr(packing, "_fitting", lambda program: about["fitting"])
    monkeypatch.setattr(packing, "_seconds", lambda step: 1.0)
    monkeypatch.setattr(packing, "_seconds_of_lanes", of_lanes)
    return about


def width(program: Program, runs: int) -> int:
    return packing.lanes_that_pay(program, range(runs)).width


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("runs", "about", "lanes", "asked"),
    [
        (8, {}, 8, [8]),
        (8, {"fitting": 3}, 3, [3]),
        (9, {"fitting": 7}, 5, [5]),  # and four, in lanes for five
        (8, {"fitting": 1}, 1, []),
        (8, {"room": 4}, 4, [8, 4]),
        (10, {"room": 4}, 2, [10, 5, 2]),
        (8, {"room": 1}, 1, [8, 4, 2]),
        (8, {"seconds": {8: 8.0}}, 1, [8]),
        (8, {"seconds": {8: 7.4}}, 1, [8]),
        (8, {"seconds": {8: 7.2}}, 8, [8]),
    ],
)
def test_a_round_of_as_many_as_fit_if_that_pays(runs: int, about: dict, lanes: int, asked: list[int], machine, program):
    machine |= about
    assert width(program(), runs) == lanes
    assert machine["asked"] == asked


def test_what_was_measured_is_known(kept: Path, machine, program):
    assert width(program(), 8) == 8
    assert width(program(), 5) == 5  # fewer pay too, near enough
    assert machine["asked"] == [8]
    assert width(program(), 20) == 20  # so many were never tried
    assert machine["asked"] == [8, 20]
    machine["fitting"] = 30
    (file,) = kept.iterdir()
    file.unlink()  # as someone does who wants it measured again
    assert width(program(), 50) == 25
    assert width(program(), 90) == 30
    assert width(program(), 31) == 16  # more do not fit, in rounds of one size
    assert width(program(), 100) == 25
    assert machine["asked"] == [8, 20, 25, 30]
    assert json.loads(file.read_text()) == {"lanes": 30, "gain": 20.0, "fits": 30}


def test_what_did_not_pay_is_known_of_fewer(machine, program, kept: Path):
    machine["seconds"] = {8: 9.0}
    assert [width(program(), runs) for runs in (8, 8, 5)] == [1, 1, 1]
    assert machine["asked"] == [8]
    assert width(program(), 9) == 9
    assert len(list(kept.iterdir())) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        '{"lanes": 8, "tried": 8}',
        '{"lanes": 8, "gain": NaN, "fits": 8}',
        '{"lanes": 8, "gain": null, "fits": 8}',
        '{"lanes": 8, "gain": 2.0, "fits": 0}',
    ],
)
def test_what_is_kept_and_damaged_is_measured_again(text: str, kept: Path, machine, program):
    assert width(program(), 8) == 8
    (file,) = kept.iterdir()
    file.write_text(text)
    assert width(program(), 8) == 8
    assert machine["asked"] == [8, 8]
    assert width(program(), 8) == 8
    assert machine["asked"] == [8, 8]


@pytest.mark.usefixtures("kept")
def test_half_as_many_fit_after_a_round_that_ran_out_of_memory(machine, program):
    lanes = packing.lanes_that_pay(program(), range(8))
    assert packing.narrowed(lanes).width == 4
    assert width(program(), 8) == 4
    assert width(program(), 6) == 3
    assert packing.narrowed(packing.narrowed(Lanes(program(), 3))).width == 1
    assert width(program(), 8) == 1
    assert machine["asked"] == [8]


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(("seeds", "shared"), [([4] * 4, True), ([1, 2, 3, 4], False), ([1, 1, 1, 2], False)])
def test_batches_are_shared_if_the_first_round_will_share_them(seeds: list[int], shared: bool, machine, program):
    packing.lanes_that_pay(program(), seeds)
    assert machine["shared"] == [shared]
    machine["fitting"] = 2
    packing.lanes_that_pay(program({"model.layers": 1}), seeds)
    assert machine["shared"][1:] == [seeds[0] == seeds[1]]


def test_programs_memories_and_versions_are_measured_each_for_itself(kept: Path, machine, program, monkeypatch):
    changes = [
        lambda: None,
        lambda: monkeypatch.setattr(packing, "__version__", "another"),
        lambda: monkeypatch.setattr(packing.jax, "local_devices", lambda: [Device()]),
        lambda: monkeypatch.setattr(Device, "memory", 2**30),
    ]
    for count, change in enumerate(changes, 1):
        change()
        assert width(program(), 8) == 8
        assert width(program(), 8) == 8
        assert len(list(kept.iterdir())) == len(machine["asked"]) == count
    width(program({"model.layers": 1}), 8)
    assert len(list(kept.iterdir())) == len(machine["asked"]) == len(changes) + 1


class Device:
    """Of whose memory a process may have a share."""

    device_kind, memory = "cpu", 2**31

    def memory_stats(self) -> dict[str, int]:
        return {"bytes_limit": self.memory}


@pytest.mark.usefixtures("kept")
def test_nothing_is_made_up_about_a_real_device(program):
    """What it takes here is measured, and small models of which a few fit are found to fit."""
    found, lanes = packing.measure(program(), range(3))
    assert found["lanes"] == 3
    assert found["fits"] > 3
    assert lanes.width == (3 if found["gain"] > packing.LEAST_GAIN else 1)
    assert lanes._state is None


@pytest.mark.usefixtures("kept")
def test_what_was_compiled_to_measure_trains(program, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packing, "LEAST_GAIN", 0.0)
    lanes = packing.lanes_that_pay(program(), [7, 7])
    assert {*lanes._compiled} == {True}


def test_a_cache_that_cannot_be_written_is_done_without(machine, program, tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert width(program(), 8) == 8
    assert packing.narrowed(Lanes(program(), 8)).width == 4
