"""`run --topology` where the devices are another machine's, or not enough."""

import json
from dataclasses import asdict

import pytest

from slicedice import machine

FLAGS = "--config.router.group=1", "--config.execution.micro_batch=1"


@pytest.fixture
def local(desk):
    """The desk, with a local launcher that trains nothing."""
    source = (desk.folder / "fake.py").read_text()
    desk.write("launch/local.py", source.replace("Path(__file__).parent", "Path(__file__).parent.parent"))
    return desk


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch):
    """Has this machine have an accelerator, and say which it is or not."""

    def have(kind: str | None, gpus: int = 0, *, known: bool = True) -> None:
        monkeypatch.setattr(machine, "accelerator", lambda: kind)
        monkeypatch.setattr(machine, "gpus", lambda: [str(index) for index in range(gpus)])
        monkeypatch.setattr(machine, "is_known", lambda: known)

    have(None)
    return have


@pytest.mark.parametrize(
    ("topology", "line"),
    [
        ("v5e:2x2", "There is no v5e here: 4 simulated CPU devices stand in."),
        ("h100:1", "There is no h100 here: 1 simulated CPU device stands in."),
    ],
)
def test_a_cpu_stands_in_and_it_is_said(local, devices, topology: str, line: str):
    said = local.sweep("--topology", topology, *FLAGS, launcher="local")
    assert said.status == 0
    assert line in said.out.splitlines()
    assert len(local.launched) == 1
    # Nothing is left to train, here or elsewhere.
    assert "stand" not in local.sweep("--topology", topology, *FLAGS, launcher="local").out


@pytest.mark.parametrize("verb", [["plan"], ["--dry_run"]])
def test_a_plan_is_for_any_devices(local, devices, verb: list[str]):
    for kind in (None, "h100"):
        devices(kind, 1)
        said = local.sweep(*verb, "--topology", "v5e:2x2", *FLAGS, launcher="local")
        assert said.status == 0
        assert "stand" not in said.out


@pytest.mark.parametrize(
    ("here", "topology", "words"),
    [
        (("h100", 8), "v5e:2x2", ["v5e:2x2", "count as h100"]),
        (("a100", 8), "h100:8", ["h100:8", "count as a100"]),
        (("v6e", 0), "v5e:2x2", ["v5e:2x2", "count as v6e"]),
        (("v5e", 0), "h100:2", ["h100:2", "count as v5e"]),
        (("h100", 2), "h100:4", ["h100:4", "2 GPUs are here", "h100:2"]),
    ],
)
def test_other_devices_are_refused(local, devices, here: tuple[str, int], topology: str, words: list[str]):
    devices(*here)
    said = local.sweep("--topology", topology, *FLAGS, launcher="local")
    assert said.status == 2
    assert all(word in said.err for word in ("--topology = ", "JAX_PLATFORMS=cpu", *words)), said.err
    assert local.launched == []


@pytest.mark.parametrize(
    ("here", "topology"), [(("h100", 8), "h100:2"), (("h100", 2), "h100:2"), (("v5e", 0), "v5e:2x4")]
)
def test_the_devices_that_are_here_are_trained_on(local, devices, here: tuple[str, int], topology: str):
    """How many chips the other hosts of a slice have is not known here."""
    devices(*here)
    said = local.sweep("--topology", topology, *FLAGS, launcher="local")
    assert said.status == 0, said.err
    assert "stand" not in said.out
    assert len(local.launched) == 1


def test_an_accelerator_that_does_not_say_which_it_is_may_be_any_of_its_kind(local, devices):
    devices("v5e", known=False)
    assert "count as v5e" in local.sweep("--topology", "h100:2", *FLAGS, launcher="local").err
    assert local.sweep("--topology", "v5p:2x2x1", *FLAGS, launcher="local").status == 0


def test_another_launcher_trains_elsewhere(local, devices):
    """As from a machine that hands runs to others."""
    devices("a100", 1)
    said = local.sweep("--topology", "v5e:2x2", *FLAGS)
    assert said.status == 0
    assert "stand" not in said.out


def test_simulated_devices_tell_nothing_of_a_cpus_speed(desk):
    """They share its cores."""
    assert desk.sweep(*FLAGS).status == 0
    for mesh, origin in (("data=2", "an assumption"), ("", "the median of 3 runs here")):
        for run in desk.runs:
            path = run.path / "result.json"
            result = json.loads(path.read_text())
            measured = {"seconds_per_step": 0.1, "execution": {**asdict(run.execution()), "mesh": mesh}}
            provenance = {**result["provenance"], "platform": "cpu"}
            path.write_text(json.dumps({**result, **measured, "provenance": provenance}))
        said = desk.sweep("plan", "--device", "cpu", *FLAGS).out
        assert origin in " ".join(said.split())
