"""A whole sharded step through the TPU's compiler, for chips that are not there."""

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import asdict
from typing import Any

import pytest

from slicedice.cost.footprint import memory_parts
from slicedice.cost.traffic import traffic
from slicedice.grid import load_config
from slicedice.spec import canonical_json, resolve
from slicedice.spec.config import override

NEEDS_COMPILER = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the libtpu package, which holds the TPU's compiler"
)


def _ask(*requests: dict[str, Any]) -> list[dict[str, Any]]:
    lines = "".join(json.dumps({"slices": 1, **request}) + "\n" for request in requests)
    done = subprocess.run(
        [sys.executable, "-m", "slicedice.cost.compiling"], input=lines, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.long
@NEEDS_COMPILER
def test_a_step_fits_or_does_not_and_sends_what_was_counted():
    layers = {"model.layers": 2, "execution.mesh": "data=2 expert=2", "execution.remat": True}
    spec, execution = resolve(override(load_config("50m"), {**layers, "model.experts": "n=7 g=1/2"}, where="a test"))
    large, _ = resolve(override(load_config("50m"), {**layers, "model.experts": "n=8192 g=1/2"}, where="a test"))
    request = {"spec": canonical_json(spec), "execution": asdict(execution), "topology": "v5e:2x2"}
    whole, much, none = _ask(request, {**request, "spec": canonical_json(large)}, {**request, "topology": "v5e:5x5"})
    assert whole["fits"] is True
    assert 5e8 < whole["bytes"] < 4e9
    parts = memory_parts(spec, execution)
    assert whole["state_bytes"] == pytest.approx(parts["parameters"] + parts["optimizer"], rel=0.02)
    assert whole["traffic"] == pytest.approx(sum(traffic(spec, execution).values()), rel=0.1)
    # A device has four of the seven experts whole, and no more. Gradients add up in float32, tokens alone in bfloat16.
    shapes = {(one["kind"], array) for one in whole["collectives"] for array in one["shape"].split()}
    assert not [array for _, array in shapes if re.search(r"\b[78],(240|480|120),(240|480|120)\]", array)]
    halves = [array for kind, array in shapes if "reduce" in kind and array.startswith("bf16")]
    assert halves
    assert all(re.fullmatch(r"bf16\[(16384|328\d\d),240\]", array) for array in halves), halves
    assert [array for kind, array in shapes if "reduce" in kind and array.startswith("f32[120,")], shapes
    assert much["fits"] is False
    assert much["bytes"] > 15 * 2**30
    assert none["error"].startswith("the compiler knows no v5e:5x5")


def test_other_errors_are_told(tiny):
    spec, execution = tiny({"model.experts": "n=4 g=1/2"})
    broken = {**asdict(execution), "implementation": "ragged_doc"}
    (answer,) = _ask({"spec": canonical_json(spec), "execution": broken, "topology": "v5e:2x2"})
    assert "ragged_doc" in answer["error"] or answer["error"] == "no compiler"
