"""A sweep on this machine asks how many workers pay: once, of the whole plan, and not where it was said how many."""

import json

import pytest

from slicedice import machine
from slicedice.launching import cores, missing


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path) -> list[int]:
    """How many workers were measured, one after the other, on two cores where one worker is the fastest."""
    asked = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(machine, "cores", lambda: [0, 1])
    monkeypatch.setattr(machine, "memory", lambda: 2**40)
    monkeypatch.setattr(missing, "measured_speed", lambda run, places: asked.append(len(places)) or 1 / len(places))
    return asked


@pytest.fixture
def is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes every sweep for one that is worth measuring."""
    monkeypatch.setattr(cores, "is_worth_it", lambda *_: True)


def workers(desk) -> list[int]:
    """How many each launch was allowed."""
    path = desk.folder / "launched.jsonl"
    return [json.loads(line)["max_concurrent"] for line in path.read_text().splitlines()]


@pytest.mark.usefixtures("is_large")
def test_the_choice_is_told_and_is_the_same_for_what_is_left(desk, measured: list[int]):
    desk.outcomes(dense="missing")
    said = desk.sweep()
    assert measured == [1, 2]
    assert "on 2 cores: 1 1, 2 0. 1 are used" in said.out
    desk.outcomes()
    assert "1 are used" in desk.sweep().out
    assert len(desk.launched[1]) == 1
    assert workers(desk) == [1, 1]
    assert measured == [1, 2]


@pytest.mark.usefixtures("is_large")
def test_with_json_the_choice_is_told_beside_it(desk, measured: list[int]):
    said = desk.sweep("--json")
    assert measured == [1, 2]
    assert json.loads(said.out)["runs"]
    assert "1 are used" in said.err


@pytest.mark.usefixtures("is_large")
def test_who_says_how_many_gets_as_many(desk, measured: list[int]):
    desk.sweep("--max_concurrent", "3")
    assert workers(desk) == [3]
    assert measured == []


@pytest.mark.usefixtures("is_large")
@pytest.mark.parametrize("arguments", [["plan"], ["--dry_run"], ["status"]])
def test_looking_measures_nothing(desk, measured: list[int], arguments: list[str]):
    assert desk.sweep(*arguments).status == 0
    assert measured == []


@pytest.mark.usefixtures("is_large")
def test_a_dry_run_shows_the_workers_that_are_known_to_pay(desk, measured: list[int]):
    def commands() -> int:
        return desk.sweep("--dry_run", launcher="local").out.count("slicedice.work --store")

    desk.outcomes(dense="missing")
    assert commands() == 2
    desk.sweep("--only", "*dense*")
    assert measured == [1, 2]
    assert commands() == 2  # the plan's largest program is another
    desk.sweep()
    assert commands() == 1


def test_a_small_sweep_measures_nothing(desk, measured: list[int]):
    desk.sweep()
    assert workers(desk) == [0]
    assert measured == []
