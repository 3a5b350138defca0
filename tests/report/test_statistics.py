"""Cells, the noise pooled over them, and what is called noise."""

import math

import numpy as np
import pytest

from slicedice.report.results import read_results
from slicedice.report.statistics import Cell, cells, pooled_deviation
from slicedice.report.tables import verdict

MOE = {"model.experts": "n=8 k=4 g=1/4"}


def test_pooled_deviation_is_the_root_of_the_mean_variance_by_freedom(rng: np.random.Generator):
    groups = [rng.normal(rng.normal(), 1.0, size).tolist() for size in (2, 3, 1, 5, 2)]
    freedom = [len(group) - 1 for group in groups]
    variances = np.array([np.var(group, ddof=1) if len(group) > 1 else 0.0 for group in groups])
    expected = np.sqrt(np.average(variances, weights=freedom))
    assert pooled_deviation(groups) == pytest.approx(expected, rel=1e-12)


def test_pooled_deviation_knows_nothing_without_a_second_seed():
    assert pooled_deviation([]) is None
    assert pooled_deviation([[1.0], [2.0]]) is None
    assert pooled_deviation([[1.0], [2.0, 2.0]]) == 0.0


def test_pooled_deviation_is_an_unbiased_variance(rng: np.random.Generator):
    # 2000 pairs: the estimate of a variance of 4 lies within 6 of its standard errors, 4 * sqrt(2 / 2000).
    groups = (rng.normal(0, 2, (2000, 2)) + rng.normal(0, 10, (2000, 1))).tolist()
    assert (pooled_deviation(groups) or 0) ** 2 == pytest.approx(4, abs=6 * 4 * math.sqrt(2 / 2000))


def test_seeds_are_one_cell_with_a_mean_and_a_standard_error(rng: np.random.Generator, row_of):
    losses = {"dense": rng.normal(size=3), "moe": rng.normal(size=2), "alone": rng.normal(size=1)}
    points = {"dense": {}, "moe": MOE, "alone": {**MOE, "router.alpha": 0.5}}
    rows = [
        row_of({**points[name], "seed": seed}, loss=float(losses[name][seed]))
        for seed in range(3)
        for name in points
        if seed < len(losses[name])
    ]
    found = cells(rows, "loss")
    assert [cell.values for cell in found] == [tuple(losses[name]) for name in points]
    # Degrees of freedom: two of three seeds, one of two.
    squares = sum(((x - x.mean()) ** 2).sum() for x in losses.values())
    for cell, name in zip(found, points, strict=True):
        assert cell.mean == pytest.approx(losses[name].mean(), rel=1e-12)
        assert cell.error == pytest.approx(np.sqrt(squares / 3 / len(losses[name])), rel=1e-12)


def test_one_seed_has_no_error(row_of):
    found = cells([row_of({}, loss=1.0), row_of(MOE, loss=2.0)], "loss")
    assert [cell.error for cell in found] == [None, None]


def test_only_finished_runs_with_a_value_are_in_cells(row_of):
    rows = [row_of({"seed": i}, state=state) for i, state in enumerate(["missing", "crashed", "running"])]
    rows.append(row_of({"seed": 3}, state="diverged", loss=math.nan))
    rows.append(row_of({"seed": 4}))
    assert cells(rows, "loss") == []
    assert [cell.values for cell in cells([*rows, row_of({"seed": 5}, loss=2.0)], "loss")] == [(2.0,)]


OTHER = [
    {"router.alpha": 0.5},
    {"router.gamma": 0.001},
    {"router.z_loss": 0.5},
    {"router.kind": "default"},
    {"router.kind": "default", "router.capacity_factor": 2.0},
    {"router.group": 1},
    {"model.experts": "n=16 k=4 g=1/4"},
    {"model.experts": "n=8 k=2 g=1/2"},
    {"model.experts": "n=8 k=3 g=1/4", "model.generalist": "1/4"},
    {"model.experts": "n=8 k=3 g=1/4", "model.generalist": "1/4", "model.wiring": "plain"},
    {"model.layers": 3},
    {"model.d_model": 32},
    {"model.d_ff": 32},
    {"optimizer.learning_rate": 1.0},
    {"optimizer.weight_decay": 0.5},
    {"optimizer.warmup_steps": 1},
    {"optimizer.b2": 0.5},
    {"budget.tokens": 12 * 8 * 16},
    {"budget.batch_size": 16, "execution.micro_batch": 16},
    {"data.sequence_length": 32},
    {"compute_dtype": "bfloat16"},
    {"evaluation.tokens": 64},
]


@pytest.mark.parametrize("other", OTHER, ids=lambda point: " ".join(f"{k}={v}" for k, v in point.items()))
def test_runs_that_differ_in_more_than_the_seed_are_no_seeds_of_one_cell(store, plan_of, finish, other):
    # Two settings taken for seeds would turn their difference into noise, and hide every other one.
    points = [MOE, {**MOE, **other}]
    plan = plan_of(*({**point, "seed": seed} for seed in (3, 4) for point in points))
    for i, loss in enumerate([1.0, 2.0, 1.5, 2.5]):
        finish(plan, i, {"a": loss, "macro": loss})
    found = cells(read_results(plan, store).rows, "loss")
    assert [cell.values for cell in found] == [(1.0, 1.5), (2.0, 2.5)]


def test_two_capacities_are_two_cells(store, plan_of, finish):
    plan = plan_of(*({**MOE, "router.kind": "default", "router.capacity_factor": c} for c in (1.0, 2.0)))
    for i in range(2):
        finish(plan, i, {"a": 1.0, "macro": 1.0})
    assert len(cells(read_results(plan, store).rows, "loss")) == 2


@pytest.mark.parametrize("sign", [1, -1])
def test_what_seeds_alone_could_make_is_called_noise(rng: np.random.Generator, row_of, sign: int):
    errors = rng.uniform(0.01, 0.02, 2)
    t = rng.uniform(2, 5)
    margin = t * float(np.hypot(*errors))
    dense = Cell(row_of({}), (3.0,), float(errors[0]), t)
    for share, noise in ((0.99, True), (1.01, False)):
        difference = sign * margin * share
        told = verdict(Cell(row_of(MOE), (3.0 + difference,), float(errors[1]), t), dense)
        assert told.startswith(f"{difference:+.4f}")
        assert ("within noise" in told) is noise


def test_the_verdict_says_no_more_than_is_known(row_of):
    dense = Cell(row_of({}), (3.0,), 0.5, 2.0)
    cell = Cell(row_of(MOE), (2.75,), None, 2.0)
    assert verdict(cell, dense) == "-0.2500"
    assert verdict(dense, dense) == ""
    assert verdict(cell, None) == ""
