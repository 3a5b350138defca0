"""Cells, the noise pooled over them, and what is called noise."""

import math

import numpy as np
import pytest
import scipy.stats

from slicedice.report.results import read_results
from slicedice.report.statistics import BLOCK, CELL, Cell, Noise, cells, difference, residual_noise
from slicedice.report.tables import verdict

MOE = {"model.experts": "n=8 k=4 g=1/4"}


def table(groups, beside: str = "b") -> list[dict]:
    """Rows of measurements y, one group a cell, seeds in order."""
    return [
        {"cell": f"{beside}{i}", "batches": beside, "seed": seed, "y": float(y)}
        for i, group in enumerate(groups)
        for seed, y in enumerate(group)
    ]


def test_noise_between_seeds_is_the_root_of_the_mean_variance_by_freedom(rng: np.random.Generator):
    groups = [rng.normal(rng.normal(), 1.0, size).tolist() for size in (2, 3, 1, 5, 2)]
    freedom = [len(group) - 1 for group in groups]
    variances = np.array([np.var(group, ddof=1) if len(group) > 1 else 0.0 for group in groups])
    noise = residual_noise(table(groups), "y", [CELL])
    assert noise is not None
    assert noise.deviation == pytest.approx(np.sqrt(np.average(variances, weights=freedom)), rel=1e-9)
    assert noise.freedom == sum(freedom)
    assert noise.t == pytest.approx(scipy.stats.t.ppf(0.975, sum(freedom)), rel=1e-9)


def test_nothing_is_known_of_noise_without_a_second_seed():
    assert residual_noise([], "y", [CELL]) is None
    assert residual_noise(table([[1.0], [2.0]]), "y", [CELL]) is None
    both = residual_noise(table([[1.0], [2.0, 2.0]]), "y", [CELL])
    assert both is not None
    assert (both.deviation, both.freedom) == (pytest.approx(0, abs=1e-12), 1)
    # One cell's two seeds tell nothing of what is left beside the seeds.
    assert residual_noise(table([[1.0], [2.0, 3.0]]), "y", [CELL, BLOCK]) is None


def test_what_seeds_share_is_no_noise_between_cells(rng: np.random.Generator):
    """Over 40 tables of 12 cells and 4 seeds the variance that is left is the noise's, 4, and not the seeds', 100."""
    found = []
    for _ in range(40):
        y = rng.normal(0, 50, (12, 1)) + rng.normal(0, 10, (1, 4)) + rng.normal(0, 2, (12, 4))
        noise = residual_noise(table(y), "y", [CELL, BLOCK])
        assert noise is not None
        assert noise.freedom == 11 * 3
        found.append(noise.deviation**2)
    # Six standard errors of a variance of 4 from 40 * 33 degrees of freedom.
    assert np.mean(found) == pytest.approx(4, abs=6 * 4 * math.sqrt(2 / (40 * 33)))


def test_seeds_of_other_settings_are_other_blocks(rng: np.random.Generator):
    a, b = (rng.normal(0, 1, (3, 1)) + seeds for seeds in rng.normal(0, 1, (2, 1, 2)))
    noise = residual_noise(table(a, "a") + table(b, "b"), "y", [CELL, BLOCK])
    assert noise is not None
    # Levels that add up leave nothing, unless seeds of both settings are taken for the same ones.
    assert noise.deviation == pytest.approx(0, abs=1e-9)
    assert noise.freedom == 2 * (3 - 1)


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
    assert [cell.values for cell in found] == [dict(enumerate(losses[name])) for name in points]
    # Seeds 0 and 1 of two cells leave one degree: half the variance of their differences is one run's.
    deviation = np.std(losses["dense"][:2] - losses["moe"], ddof=1) / np.sqrt(2)
    for cell, name in zip(found, points, strict=True):
        assert cell.mean == pytest.approx(losses[name].mean(), rel=1e-12)
        error = deviation / np.sqrt(len(losses[name]))
        assert cell.margin == pytest.approx(scipy.stats.t.ppf(0.975, 1) * error, rel=1e-9)


def test_the_seeds_of_one_cell_alone_are_all_the_noise_there_is(rng: np.random.Generator, row_of):
    losses = rng.normal(size=3)
    (cell,) = cells([row_of({"seed": seed}, loss=float(loss)) for seed, loss in enumerate(losses)], "loss")
    assert cell.margin == pytest.approx(scipy.stats.t.ppf(0.975, 2) * losses.std(ddof=1) / 3**0.5, rel=1e-9)


def test_intervals_leave_out_what_a_seed_does_to_all_cells(rng: np.random.Generator, row_of):
    noise, seeds = rng.normal(0, 0.01, (3, 4)), rng.normal(0, 100, 4)
    points = [{}, MOE, {**MOE, "router.alpha": 0.5}]

    def margins(y) -> list[float | None]:
        rows = [row_of({**points[i], "seed": s}, loss=float(y[i, s])) for i in range(3) for s in range(4)]
        return [cell.margin for cell in cells(rows, "loss")]

    assert margins(noise + seeds) == pytest.approx(margins(noise), rel=1e-6)


def test_one_seed_has_no_error(row_of):
    found = cells([row_of({}, loss=1.0), row_of(MOE, loss=2.0)], "loss")
    assert [cell.margin for cell in found] == [None, None]


def test_only_finished_runs_with_a_value_are_in_cells(row_of):
    rows = [row_of({"seed": i}, state=state) for i, state in enumerate(["missing", "crashed", "running"])]
    rows.append(row_of({"seed": 3}, state="diverged", loss=math.nan))
    rows.append(row_of({"seed": 4}))
    assert cells(rows, "loss") == []
    assert [cell.values for cell in cells([*rows, row_of({"seed": 5}, loss=2.0)], "loss")] == [{5: 2.0}]


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
    assert [cell.values for cell in found] == [{3: 1.0, 4: 1.5}, {3: 2.0, 4: 2.5}]


def test_two_capacities_are_two_cells(store, plan_of, finish):
    plan = plan_of(*({**MOE, "router.kind": "default", "router.capacity_factor": c} for c in (1.0, 2.0)))
    for i in range(2):
        finish(plan, i, {"a": 1.0, "macro": 1.0})
    assert len(cells(read_results(plan, store).rows, "loss")) == 2


def test_a_difference_is_taken_seed_by_seed_over_the_seeds_that_both_have(row_of):
    losses = {"dense": {0: 3.0, 1: 4.0, 2: 9.0}, "moe": {0: 2.5, 1: 3.25}}
    rows = [row_of({"seed": seed}, loss=loss) for seed, loss in losses["dense"].items()]
    rows += [row_of({**MOE, "seed": seed}, loss=loss) for seed, loss in losses["moe"].items()]
    dense, moe = cells(rows, "loss")
    effect, margin = difference(moe, dense)
    assert effect == pytest.approx(-0.625)
    # Differences of -0.5 and -0.75: one degree of freedom, and half of their variance is one cell's noise.
    deviation = np.std([-0.5, -0.75], ddof=1) / np.sqrt(2)
    assert margin == pytest.approx(scipy.stats.t.ppf(0.975, 1) * deviation, rel=1e-9)


def test_cells_without_a_common_seed_have_no_interval(row_of):
    rows = [row_of({"seed": seed}, loss=3.0 + seed) for seed in (0, 1)]
    rows += [row_of({**MOE, "seed": seed}, loss=1.0 + seed) for seed in (2, 3)]
    dense, moe = cells(rows, "loss")
    assert difference(moe, dense) == (0.0, None)


def test_seeds_of_one_cell_stand_in_where_others_have_one(row_of):
    rows = [row_of({"seed": seed}, loss=3.0 + seed) for seed in (0, 1)] + [row_of(MOE, loss=2.0)]
    dense, moe = cells(rows, "loss")
    effect, margin = difference(moe, dense)
    assert effect == -1
    assert margin == pytest.approx(scipy.stats.t.ppf(0.975, 1) * np.sqrt(0.5) * np.sqrt(2), rel=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_what_seeds_alone_could_make_is_called_noise(rng: np.random.Generator, row_of, sign: int):
    noise = Noise(float(rng.uniform(0.01, 0.02)), int(rng.integers(1, 9)))
    dense = Cell(row_of({}), {0: 3.0, 1: 5.0}, noise)
    margin = noise.t * noise.deviation
    for share, within in ((0.99, True), (1.01, False)):
        effect = sign * margin * share
        told = verdict(Cell(row_of(MOE), {0: 3.0 + effect, 1: 5.0 + effect}, noise), dense)
        assert told.startswith(f"{effect:+.4f} ± {margin:.4f}")
        assert ("within noise" in told) is within


def test_the_verdict_says_no_more_than_is_known(row_of):
    dense = Cell(row_of({}), {0: 3.0})
    cell = Cell(row_of(MOE), {0: 2.75})
    assert verdict(cell, dense) == "-0.2500"
    assert verdict(dense, dense) == ""
    assert verdict(cell, None) == ""


BIG = {"scale": "big", "model.d_model": 32}
LONG = {"budget.tokens": 12 * 8 * 16}
FAST = {"optimizer.learning_rate": 0.5}


def seeded(row_of, rng: np.random.Generator, noise: float, *points: dict, seeds: int = 2) -> list[dict]:
    return [
        row_of({**point, "seed": seed}, loss=float(rng.normal(3, noise))) for seed in range(seeds) for point in points
    ]


def two_by_two(rows: list[dict], column: str = "loss") -> float:
    """The noise of two cells of two seeds: their differences differ by that of four runs."""
    a, b, c, d = (row[column] for row in rows)
    return abs(a - b - c + d) / 2


@pytest.mark.parametrize("apart", [BIG, LONG], ids=["scale", "budget"])
def test_what_is_trained_otherwise_has_noise_of_its_own(rng: np.random.Generator, row_of, apart: dict):
    quiet, loud = seeded(row_of, rng, 0.01, {}, MOE), seeded(row_of, rng, 1.0, apart, {**MOE, **apart})
    rows = quiet + loud
    for cell in cells([rows[i] for i in rng.permutation(len(rows))], "loss"):
        own = quiet if cell.row["cell"] in {row["cell"] for row in quiet} else loud
        assert cell.noise is not None
        assert cell.noise.deviation == pytest.approx(two_by_two(own), rel=1e-6)
        assert cell.noise.freedom == 1


def test_a_set_up_has_noise_of_its_own_once_it_is_known_well_enough(rng: np.random.Generator, row_of):
    fast = {**MOE, **FAST}
    usual = seeded(row_of, rng, 0.01, {}, MOE, {**MOE, "router.alpha": 0.5}, seeds=4)
    for seeds, own in ((2, False), (6, True)):  # of two cells: 1 and 5 degrees of freedom
        rows = usual + seeded(row_of, rng, 1.0, FAST, fast, seeds=seeds)
        found = [cell for cell in cells(rows, "loss") if cell.row["learning_rate"] == 0.5]
        assert len(found) == 2
        for cell in found:
            assert cell.noise is not None
            assert (cell.noise.deviation > 0.1) is own
            assert cell.noise.freedom == (5 if own else 6)


def test_ratios_have_noise_in_octaves(rng: np.random.Generator, row_of):
    rows = [row_of({**point, "seed": seed}, loss=3.0) for seed in range(2) for point in ({}, MOE)]
    for row in rows:
        row["load_imbalance"] = float(2 ** rng.normal(2, 0.5))
    for cell in cells(rows, "load_imbalance"):
        own = [row["load_imbalance"] for row in rows if row["cell"] == cell.row["cell"]]
        assert cell.mean == pytest.approx(math.prod(own) ** 0.5)
        assert cell.noise is not None
        octaves = [{"load_imbalance": math.log2(row["load_imbalance"])} for row in rows]
        assert cell.noise.deviation == pytest.approx(two_by_two(octaves, "load_imbalance"), rel=1e-6)
        assert cell.margin is not None
        assert cell.interval is not None
        low, high = cell.interval
        assert 0 < low < cell.mean < high
        assert math.log2(high / low) == pytest.approx(2 * cell.margin)


@pytest.mark.parametrize("apart", [BIG, LONG], ids=["scale", "budget"])
def test_noise_of_another_scale_or_budget_is_nobody_elses(rng: np.random.Generator, row_of, apart: dict):
    rows = [*seeded(row_of, rng, 0.1, {}, MOE), row_of(apart, loss=2.0), row_of({**MOE, **apart}, loss=1.0)]
    assert [cell.noise is None for cell in cells(rows, "loss")] == [False, False, True, True]
    assert [cell.margin is None for cell in cells(rows, "loss")] == [False, False, True, True]


def test_layers_and_routers_of_one_set_up_share_their_noise(rng: np.random.Generator, row_of):
    other = [{**MOE, "router.alpha": 0.5}, {"model.experts": "n=8 g=1/4", "router.kind": "default"}]
    rows = seeded(row_of, rng, 0.1, {}, MOE, *other, seeds=3)
    found = cells(rows, "loss")
    assert [cell.noise and cell.noise.freedom for cell in found] == [3 * 2] * 4
    assert len({cell.noise for cell in found}) == 1


def test_noise_is_known_from_everything_where_rows_have_one_seed(rng: np.random.Generator, row_of):
    rows = [row_of({}, loss=3.0), row_of(MOE, loss=2.0)]
    elsewhere = seeded(row_of, rng, 0.1, {**MOE, "router.alpha": 0.5}, {**MOE, "router.alpha": 0.25})
    assert [cell.noise for cell in cells(rows, "loss")] == [None, None]
    found = cells(rows, "loss", [*rows, *elsewhere])
    # Everything tells of the noise, and is no cell.
    assert [cell.values for cell in found] == [{0: 3.0}, {0: 2.0}]
    for cell in found:
        assert cell.noise is not None
        assert cell.noise.deviation == pytest.approx(two_by_two(elsewhere), rel=1e-6)
        assert cell.margin == pytest.approx(scipy.stats.t.ppf(0.975, 1) * cell.noise.deviation, rel=1e-9)
    dense, moe = found
    _, margin = difference(moe, dense)
    assert margin == pytest.approx(scipy.stats.t.ppf(0.975, 1) * two_by_two(elsewhere) * 2**0.5, rel=1e-6)


def test_noise_is_of_the_column_that_is_asked_for(rng: np.random.Generator, row_of):
    elsewhere = seeded(row_of, rng, 0.1, {}, MOE)
    for row in elsewhere:
        row["dropped_share"] = float(rng.normal(2, 5))
    alone = row_of({**MOE, "router.alpha": 0.5}, loss=1.0, dropped_share=2.0)
    for column in ("loss", "dropped_share"):
        (cell,) = cells([alone], column, [alone, *elsewhere])
        assert cell.noise is not None
        assert cell.noise.deviation == pytest.approx(two_by_two(elsewhere, column), rel=1e-6)


def test_unfinished_and_diverged_runs_tell_nothing_of_noise(row_of):
    alone = row_of({**MOE, "router.alpha": 0.5}, loss=1.0)
    rest = [row_of({}, loss=3.0), row_of({"seed": 1}, loss=4.0, state="diverged"), row_of(MOE, loss=2.0)]
    rest += [row_of({**MOE, "seed": 1}, state="running"), row_of({**MOE, "seed": 2})]
    assert [cell.noise for cell in cells([alone], "loss", [alone, *rest])] == [None]


def test_a_set_up_of_single_seeds_takes_the_noise_that_is_known_best_beside_it(rng: np.random.Generator, row_of):
    slow = {"optimizer.learning_rate": 0.25}
    few = seeded(row_of, rng, 0.1, FAST, {**MOE, **FAST})
    many = seeded(row_of, rng, 0.1, {}, MOE, seeds=4)
    alone = row_of(slow, loss=2.0)
    for everything in ([*few, *many, alone], [*many, *few, alone], [*few, alone]):
        (cell,) = cells([alone], "loss", everything)
        best = many if many[0] in everything else few
        assert cell.noise == cells(best, "loss")[0].noise
        assert cell.noise is not None
        assert cell.noise.freedom == (3 if best is many else 1)
    # But not that of another scale, however well it is known.
    (cell,) = cells([row_of({**BIG, **slow}, loss=2.0)], "loss", [*few, *many])
    assert cell.noise is None
