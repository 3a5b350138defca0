"""Runs of different compute dtypes: told, drawn as lines of their own, and never compared."""

from pathlib import Path

import pytest

from slicedice.grid import Figure, Panel
from slicedice.report.claims import judge
from slicedice.report.report import write_report
from slicedice.report.results import read_results
from slicedice.report.statistics import cells, dense_beside
from slicedice.store import Store

LAYERS = ({}, {"model.experts": "n=4 g=1/2"}, {"model.experts": "n=8 g=1/2"})
HALF = {"compute_dtype": "bfloat16"}
BIG = {"scale": "big", "model.d_model": 32}
FIGURE = Figure("figure_1", "Sizes", (Panel("P", x="n", hue="g"),))


def svg(store: Store, plan) -> str:
    _, _, page = write_report(plan, store, grid="mine", scale="s", about="")
    return Path(page.parent / "figure_1.svg").read_text()


def test_scales_of_different_dtypes_are_told(store: Store, plan_of):
    (note,) = read_results(plan_of(*LAYERS, {**BIG, **HALF}, {**BIG, "scale": "wide", **HALF, "seed": 1}), store).notes
    assert note == "Losses of different compute dtypes are not compared: float32 at tiny; bfloat16 at big, wide"
    assert read_results(plan_of(*LAYERS, BIG), store).notes == []


def test_within_a_scale_dtypes_are_lines_of_their_own_that_say_so(store: Store, plan_of, finish):
    plan = plan_of(*LAYERS, *({**layer, **HALF} for layer in LAYERS), figures=[FIGURE])
    for i in range(6):
        finish(plan, i, {"macro": 2.0 + i / 8})
    drawn = svg(store, plan)
    for dtype in ("float32", "bfloat16"):
        assert f">g = 1/2 compute_dtype={dtype}<" in drawn
        assert f">dense compute_dtype={dtype}<" in drawn
    (note,) = read_results(plan, store).notes
    assert "float32 at tiny; bfloat16 at tiny" in note
    assert "compute_dtype" not in svg(store, plan_of(*LAYERS, figures=[FIGURE]))


@pytest.mark.parametrize("other", [{}, HALF])
def test_claims_and_tables_compare_runs_of_one_dtype_alone(store: Store, plan_of, finish, other: dict):
    dropless = [{"model.experts": f"n={n} g=1/2", "seed": seed} for n in (4, 8) for seed in (0, 1)]
    default = [{**point, "router.kind": "default", **other} for point in dropless]
    plan = plan_of(*dropless, *default, other)
    for i in range(len(plan.runs)):
        finish(plan, i, {"macro": 2.0 + (i >= len(dropless)) + i / 64})
    rows = read_results(plan, store).rows
    (routers,) = [judgement for judgement in judge(rows) if judgement.claim.key == "e"]
    assert bool(routers.findings) is (other == {})
    measured = cells(rows, "loss")
    beside = [dense_beside(cell, measured) is not None for cell in measured if cell.row["router"] == "dropless"]
    assert beside == [other == {}] * 2
