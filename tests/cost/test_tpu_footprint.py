"""Memory of TPUs by arithmetic, against what their compiler said of whole steps, and by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from slicedice.cost import RATES, cost
from slicedice.cost.footprint import memory_parts
from slicedice.cost.topology import parse_topology
from slicedice.grid import load_config
from slicedice.spec import resolve
from slicedice.spec.config import override

ANSWERS = Path(__file__).parents[2] / "benchmarks" / "results" / "compiled_steps.json"
STEPS = {step["step"]: step for step in json.loads(ANSWERS.read_text())["steps"]}


def _resolved(step: dict[str, Any]):
    execution = {f"execution.{name}": step["execution"][name] for name in ("mesh", "micro_batch", "remat")}
    layer = {"model.experts": step["layer"], "model.generalist": step["generalist"], "router.kind": step["router"]}
    return resolve(override(load_config(step["scale"]), layer | execution, where="a test"))


def _cost(step: dict[str, Any]):
    return cost(*_resolved(step), parse_topology("topology", step["topology"]).rate)


def _kinds(step: dict[str, Any]) -> set[str]:
    spec, _ = _resolved(step)
    layer = spec.model.layer
    kinds = {("dense", "homogeneous", "heterogeneous")[len(layer.experts)]}
    kinds |= {"generalist"} if layer.experts and layer.generalist else set()
    return kinds | ({"dropping"} if spec.router.kind == "default" else set())


@pytest.mark.parametrize("step", STEPS)
def test_it_is_what_the_compiler_reserves(step: str):
    assert _cost(STEPS[step]).bytes == pytest.approx(STEPS[step]["answer"]["bytes"], rel=0.15)


@pytest.mark.parametrize("pod", ["v5e:4x4", "v5p:4x4x4"])
def test_traffic_at_scale_is_what_the_compiler_sends(pod: str):
    step = next(step for step in STEPS.values() if (step["topology"], step["scale"]) == (pod, "300m"))
    assert sum(_cost(step).traffic.values()) == pytest.approx(step["answer"]["traffic"], rel=0.1)


def test_every_scale_and_every_kind_of_layer_was_asked_about():
    assert {step["scale"] for step in STEPS.values()} == {"10m", "20m", "50m", "80m", "110m", "200m", "300m"}
    every = {"dense", "homogeneous", "heterogeneous", "generalist", "dropping"}
    assert set().union(*map(_kinds, STEPS.values())) == every
    assert set().union(*(_kinds(step) for step in STEPS.values() if step["held_out"])) == every


def test_tiles_by_hand(tiny):
    """Of D = 16, two layers, d_ff = 64, V = 256 on one device: what is narrower than 128 takes 128."""
    spec, execution = tiny({"execution.micro_batch": 8})
    parts = memory_parts(spec, execution, RATES["v5p"])
    table = 256 * 16  # with the vocabulary along the lanes
    square, ffn, gain = 16 * 128, 16 * 128, 8 * 128
    assert parts["parameters"] == 4 * (2 * table + gain + 2 * (4 * square + 3 * ffn + 4 * gain))
    assert parts["optimizer"] == 2 * parts["parameters"]


def test_what_has_been_added_up_is_there_beside_what_is_added(tiny):
    spec, whole = tiny({"model.experts": "n=8 k=2 g=1/2", "router.group": 1, "execution.micro_batch": 8})
    _, parts = tiny({"model.experts": "n=8 k=2 g=1/2", "router.group": 1, "execution.micro_batch": 4})
    one, two = (memory_parts(spec, execution, RATES["v5p"]) for execution in (whole, parts))
    # All gradients once more, but for the last norm's, and the whole embedding with its narrow rows as they are used.
    more = 4 * (256 * (128 - 16) - 8 * 128)
    assert two["gradients"] - one["gradients"] == one["parameters"] + more
    assert two["buffers"] == pytest.approx(one["buffers"] / 2, abs=2 * 4)
