"""The grid of section 3.1 has the study's cells, at every scale of the study."""

from fractions import Fraction

import pytest

from slicedice import files
from slicedice.grid import enumerate_runs, load_grid

ALL = ["1", "1/2", "1/4", "1/8", "1/16", "1/32", "1/64"]
# Granularities of each sparsity, as section 3.1 lists them; the dense model comes on top.
CELLS = {
    1: ALL[1:4],
    2: ALL,
    4: ALL,
    8: ALL,
    16: ALL[:5],
    32: ALL[1:5],
    64: ALL[1:5],
    128: ALL[1:3],
    256: ["1/2", "1/4", "1/16"],
}


@pytest.mark.parametrize("scale", ["10m", "20m", "50m", "80m", "110m", "200m", "300m"])
def test_cells(scale: str):
    config = files.load("experiments", scale).get_config()
    plan = enumerate_runs(load_grid("granularity_vs_count", scale), config, overrides={})
    layers = [spec.model.layer for spec, _ in plan.runs.values()]
    assert sum(layer.is_dense for layer in layers) == 1
    got = [(layer.sparsity, e.g, e.n, e.k) for layer in layers for e in layer.experts]
    want = {(s, Fraction(g), s / Fraction(g), 1 / Fraction(g)) for s, gs in CELLS.items() for g in gs}
    assert len(got) == len(layers) - 1, "homogeneous layers alone"
    assert set(got) == want
    assert len(got) == len(want) == 42
    assert max(n for _, _, n, _ in got) == 4096
    assert [s for s, *_ in got] == sorted(s for s, *_ in got), "sparsest cells last"
    assert {(spec.seed, spec.router.kind) for spec, _ in plan.runs.values()} == {(0, None), (0, "dropless")}


@pytest.mark.parametrize("scale", ["nano", "smoke"])
def test_small_scales_resolve_and_keep_their_promise(scale: str):
    """Fewer cells, the dense model among them, more than one sparsity, count and granularity."""
    config = files.load("experiments", scale).get_config()
    plan = enumerate_runs(load_grid("granularity_vs_count", scale), config, overrides={}, seeds=1)
    layers = [spec.model.layer for spec, _ in plan.runs.values()]
    assert sum(layer.is_dense for layer in layers) == 1
    assert len(layers) < 43
    for coordinate in ("sparsity", "granularity", "count"):
        assert len({getattr(layer, coordinate) for layer in layers if not layer.is_dense}) > 1
