"""Rooms that never import JAX: the parent of a sweep must not touch a device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import slicedice

ROOMS = [
    "sweep",
    "report.report",
    "report.progress",
    "report.tables",
    "spec",
    "grid",
    "store",
    "cost",
    "data",
    "machine",
]


@pytest.mark.parametrize(
    "names", [["sweep", "train"], [name for name in ROOMS if name != "sweep"]], ids=["doors", "rooms"]
)
def test_these_import_no_jax(names: list[str]):
    modules = ", ".join(f"slicedice.{name}" for name in names)
    code = (
        f"import {modules}, sys; print(sorted({{'jax', 'jaxlib', 'flax', 'orbax', 'tensorflow'}} & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(slicedice.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("[]\n", "")
