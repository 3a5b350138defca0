"""Memory of a GPU by arithmetic, held to what the compiler asked for on one."""

import json
from pathlib import Path

import pytest

from slicedice.cost import RATES, cost
from slicedice.grid import load_config
from slicedice.spec import resolve
from slicedice.spec.config import override

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "measured_steps-NVIDIA-H200.json"
MEASURED = json.loads(RESULTS.read_text())


def name(step) -> str:
    return f"{step['scale']} {step['layer']}{' remat' if step['remat'] else ''}"


@pytest.mark.parametrize("step", MEASURED["steps"], ids=name)
def test_memory_is_what_the_compiler_asked_for(step):
    execution = {"micro_batch": step["micro_batch"], "remat": step["remat"]}
    changes = {"model.experts": step["layer"], **{f"execution.{field}": value for field, value in execution.items()}}
    counted = cost(*resolve(override(load_config(step["scale"]), changes, where="a test")), RATES["h200"])
    assert counted.bytes == pytest.approx(step["compiled"], rel=0.15)
    assert step["peak"] == pytest.approx(step["compiled"], rel=0.2), "what the device had in use, init included"


def test_steps_are_of_several_sizes_and_kinds():
    steps = MEASURED["steps"]
    assert len(steps) >= 12
    assert {step["scale"] for step in steps} >= {"10m", "110m", "300m"}
    assert {(step["layer"], step["remat"]) for step in steps} >= {
        (layer, remat) for layer in ("dense", "n=32 g=1/4") for remat in (False, True)
    }
