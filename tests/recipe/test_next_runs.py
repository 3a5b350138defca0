"""Proposed cells become a grid file that `sweep` takes."""

import pytest

from slicedice.grid import enumerate_runs, load_config, load_grid
from slicedice.report.recipe.law import fit
from slicedice.report.recipe.next_runs import Proposal, grid_file, possible
from slicedice.report.recipe.reading import point_of
from tests.recipe.known import dense_spec


@pytest.mark.parametrize("scale", ["nano", "10m", "300m"])
def test_every_cell_of_the_study_is_possible_once(scale):
    cells = possible(scale, dense_spec(scale), fit([]))
    assert len({cell.point for cell in cells}) == len(cells) > 30
    assert [(cell.s, cell.g) for cell in cells if cell.s == 1] == [(1, "1")]  # dense; the others only reweight


def test_what_is_known_is_not_proposed(rng):
    from tests.recipe.known import Laboratory, of_its_form

    known = Laboratory(rng, of_its_form(drift=0.0)).grid(["10m"])[::3]
    left = possible("10m", dense_spec("10m"), fit(known))
    assert not {cell.point for cell in left} & {o.point for o in known}
    assert len(left) + len(known) == len(possible("10m", dense_spec("10m"), fit([])))


def test_a_grid_file_trains_the_cells_as_they_were_meant(rng, tmp_path):
    cells = [c for scale in ("nano", "20m") for c in rng.permutation(possible(scale, dense_spec(scale), fit([])))[:3]]
    path = tmp_path / "next.py"
    settings = {"nano": {"optimizer.learning_rate": 2e-3}, "20m": {}}
    path.write_text(grid_file(Proposal(cells, True), settings, {}, "a test"))
    scales = [(load_grid(str(path), scale), load_config(scale)) for scale in ("nano", "20m")]
    plan = enumerate_runs(scales, overrides={})
    specs = [spec for spec, _ in plan.runs.values()]
    assert {point_of(spec) for spec in specs} == {cell.point for cell in cells}
    assert len(specs) == 3 * 2 + 3 == Proposal(cells, True).runs
    rates = {spec.scale: spec.optimizer.learning_rate for spec in specs}
    assert rates == {"nano": 2e-3, "20m": dense_spec("20m").optimizer.learning_rate}
    flops = {scale: sum(c.flops for c in cells if c.scale == scale) for scale in rates}
    assert flops == {scale: sum(s.flops for s in specs if s.scale == scale) for scale in rates}
