"""Claims: each verdict is reached from results that call for it, and none for lack of data."""

import re
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from slicedice.report.claims import Judgement, Verdict, judge
from slicedice.report.claims.claims import ACROSS
from slicedice.report.claims.difference import mean_difference
from slicedice.report.claims.judgement import COMPARABLE, everywhere_at_least
from slicedice.report.results import Row
from slicedice.report.statistics import cells
from slicedice.spec import moe_layer

NOISE = 0.002
GS = ("1/2", "1/4", "1/8")
DENSE = moe_layer(s=1, g="1")

Point = dict[str, Any]


@pytest.fixture
def rows_of(row_of, rng: np.random.Generator) -> Callable[..., list[Row]]:
    """Finished runs of some points, their losses from a law with noise, in three seeds that read other batches."""

    def make(
        points: list[Point], law: Callable[[Row], float], seeds: int = 3, noise: float = NOISE, **columns
    ) -> list[Row]:
        of_seed = rng.normal(0, 0.3, seeds)
        rows = [
            row_of({"model.d_ff": 64, **point, "seed": seed}, loss=0.0) for seed in range(seeds) for point in points
        ]
        for row in rows:
            row["loss"] = law(row) + of_seed[row["seed"]] + float(rng.normal(0, noise))
            row |= {name: make_(row) for name, make_ in columns.items()}
        return rows

    return make


def of(judgements: list[Judgement], key: str) -> Judgement:
    return next(judgement for judgement in judgements if judgement.claim.key == key)


def value(judgement: Judgement) -> float:
    assert judgement.effect is not None
    return judgement.effect.value


def usually(draw: Callable[[], Hashable]) -> Hashable:
    """What most of nine draws give: where nothing differs, one interval in twenty is beyond chance by chance."""
    return Counter(draw() for _ in range(9)).most_common(1)[0][0]


def falling(row: Row) -> float:
    return 3 - 0.05 * np.log2(row["s"]) if not row["dense"] else 3.0


GRID = [DENSE, *(moe_layer(s=s, g=g) for s in (2, 4, 8) for g in GS)]


def test_without_runs_every_claim_is_open():
    judgements = judge([])
    assert [judgement.claim.key for judgement in judgements] == list("abcdefghijk")
    assert {judgement.verdict for judgement in judgements} == {Verdict.UNRESOLVED}
    assert all(judgement.claim.grid in judgement.sentence for judgement in judgements)


def test_one_seed_supports_nothing_that_rests_on_noise(rows_of):
    points = [*GRID, *({**point, "router.kind": "default"} for point in GRID[1:])]
    judgements = judge(rows_of(points, falling, seeds=1))
    assert {judgement.verdict for judgement in judgements if judgement.claim.key != "h"} == {Verdict.UNRESOLVED}


def test_a_is_supported_by_a_falling_and_contradicted_by_a_rising_step(rows_of):
    supported = of(judge(rows_of(GRID, falling)), "a")
    assert supported.verdict is Verdict.SUPPORTED
    assert supported.effect is not None
    assert supported.effect.interval is not None
    # For twice the expert parameters.
    assert supported.effect.value == pytest.approx(-0.05, abs=5 * NOISE)
    assert supported.effect.interval[0] < -0.05 + 5 * NOISE
    assert len(supported.runs) == 3 * 9  # the dense model is on no line

    def risen(row: Row) -> float:
        return falling(row) + (0.1 if (row["s"], row["g"]) == (8, 0.25) else 0)

    assert of(judge(rows_of(GRID, risen)), "a").verdict is Verdict.CONTRADICTED


@pytest.mark.parametrize("noise", [NOISE, 0.01])
def test_a_is_not_supported_by_a_fall_that_ends(rows_of, noise: float):
    """A mean over all steps would fall too."""
    points = [DENSE, *(moe_layer(s=s, g=g) for s in (2, 4, 8, 16, 32) for g in GS)]

    def plateau(row: Row) -> float:
        return 3 - 0.05 * np.log2(min(row["s"], 8)) if not row["dense"] else 3.0

    verdicts = [of(judge(rows_of(points, plateau, noise=noise)), "a").verdict for _ in range(10)]
    assert verdicts.count(Verdict.SUPPORTED) <= 1
    judgement = of(judge(rows_of(points, plateau)), "a")
    assert re.search("with more experts up to s = (8|16),", judgement.sentence)  # by chance one step too far
    assert "s goes to 32" in judgement.sentence


def test_a_is_not_supported_where_size_does_nothing(rows_of):
    def by_count(row: Row) -> float:
        return 3 - 0.05 * np.log2(row["n"]) if not row["dense"] else 3.0

    judgements = [of(judge(rows_of(GRID, by_count)), "a") for _ in range(9)]
    assert all(judgement.verdict is not Verdict.SUPPORTED for judgement in judgements)
    # One interval in twenty is beyond chance by chance.
    assert sum("with larger experts at no step" in judgement.sentence for judgement in judgements) > 4


@pytest.mark.parametrize("noise", [0.01, 0.015])
def test_d_is_not_supported_where_one_kind_of_layer_gains(rows_of, noise: float):
    sizes = ("1/2", "1/4")
    with_ = [
        {**moe_layer(s=s, g="1/8", generalist=size), "model.wiring": "parallel"} for s in (2, 4, 8) for size in sizes
    ]
    without = [moe_layer(s=s, g="1/8") for s in (2, 4, 8)]

    def law(row: Row) -> float:
        return 3 + {None: 0.0, 0.5: 0.04, 0.25: -0.04}[row["generalist"]] * (not row["dense"])

    verdicts = [of(judge(rows_of([DENSE, *with_, *without], law, noise=noise)), "d").verdict for _ in range(10)]
    assert verdicts.count(Verdict.SUPPORTED) <= 1
    assert Verdict.CONTRADICTED in verdicts


MANY = [moe_layer(s=s, g=g) for s, g in ((4, "1/4"), (8, "1/4"), (8, "1/64"), (16, "1/64"))]
SETTINGS = [{"router.alpha": a, "router.gamma": g} for a in (1e-4, 1e-2) for g in (0.0, 1e-3)]


@pytest.mark.parametrize(
    ("harm", "weak", "verdict"),
    [
        ({(1e-2, 1e-3): 0.05}, 2.0, Verdict.SUPPORTED),
        ({}, 2.0, Verdict.CONTRADICTED),  # nothing hurts at many experts
        ({(1e-2, 1e-3): 0.05, (1e-4, 1e-3): 0.05}, 2.0, Verdict.CONTRADICTED),  # it is the bias that hurts
        ({(1e-2, 1e-3): 0.05}, 0.5, Verdict.CONTRADICTED),  # the weakest balances best
    ],
)
def test_balancing(rows_of, rng: np.random.Generator, harm: dict, weak: float, verdict: Verdict):
    def law(row: Row) -> float:
        return 3 + harm.get((row["alpha"], row["gamma"]), 0.0) * (row["n"] >= 512)

    def balance(row: Row) -> float:
        return (weak if (row["alpha"], row["gamma"]) == (1e-4, 0.0) else 1.0) * 1.5 * float(np.exp(rng.normal(0, 0.01)))

    points = [{**layer, **setting} for layer in MANY for setting in SETTINGS]
    rows = rows_of(points, law, load_imbalance=balance, load_balancing_loss=balance)
    assert of(judge(rows), "f").verdict is verdict
    some = [row for row in rows if row["n"] < 512]
    assert of(judge(some), "f").verdict in (Verdict.UNRESOLVED, Verdict.CONTRADICTED)


@pytest.mark.parametrize(
    ("shift", "verdict"),
    [(0.05, Verdict.SUPPORTED), (0.0, Verdict.SUPPORTED), (-0.05, Verdict.CONTRADICTED)],
)
def test_comparable_or_worse(rows_of, shift: float, verdict: Verdict):
    def law(row: Row) -> float:
        return falling(row) + shift * (row["kind"] == "heterogeneous" or row["wiring"] == "parallel")

    mixed = [moe_layer(s=s, g="1/2+1/4") for s in (4, 8)]
    wired = [{**moe_layer(s=s, g="1/4", generalist="1/2"), "model.wiring": "parallel"} for s in (4, 8)]
    judgements = judge(rows_of([*GRID, *mixed, *wired], law))
    for key in "cd":
        assert of(judgements, key).verdict is verdict, of(judgements, key).sentence
        assert value(of(judgements, key)) == pytest.approx(shift, abs=5 * NOISE)


@pytest.mark.parametrize(
    ("capped", "free", "e", "j"),
    [
        (0.1, 0.1, Verdict.SUPPORTED, Verdict.SUPPORTED),
        (0.1, 0.0, Verdict.SUPPORTED, Verdict.CONTRADICTED),
        (-0.1, -0.1, Verdict.CONTRADICTED, Verdict.UNRESOLVED),
    ],
)
def test_dropping_in_training_and_at_evaluation(rows_of, capped: float, free: float, e: Verdict, j: Verdict):
    def law(row: Row) -> float:
        return falling(row) + capped * (row["router"] == "default")

    points = [*GRID, *({**point, "router.kind": "default"} for point in GRID[1:])]

    def without_capacity(row: Row) -> float:
        return row["loss"] + (free - capped) * (row["router"] == "default")

    def verdicts() -> tuple[Verdict, Verdict]:
        judgements = judge(rows_of(points, law, without_capacity_loss=without_capacity))
        assert value(of(judgements, "j")) == pytest.approx(free, abs=5 * NOISE)
        return of(judgements, "e").verdict, of(judgements, "j").verdict

    assert usually(verdicts) == (e, j)


@pytest.mark.parametrize(("wired", "verdict"), [(0.05, Verdict.SUPPORTED), (0.0, Verdict.CONTRADICTED)])
def test_harm_by_wiring(rows_of, wired: float, verdict: Verdict):
    points = [
        {**moe_layer(s=s, g=g, generalist="1/2"), "model.wiring": wiring}
        for wiring in ("plain", "parallel")
        for s in (2, 4, 8)
        for g in ("1/4", "1/8")
    ]
    judgement = of(judge(rows_of([*GRID, *points], lambda r: falling(r) + wired * (r["wiring"] == "parallel"))), "k")
    assert judgement.verdict is verdict
    assert len(judgement.runs) == len(points) * 3


@pytest.mark.parametrize(("gain", "verdict"), [(0.0, Verdict.SUPPORTED), (0.06, Verdict.CONTRADICTED)])
def test_reweighting(rows_of, gain: float, verdict: Verdict):
    points = [moe_layer(s=1, g=g) for g in GS]
    rows = rows_of([DENSE, *points], lambda row: 3 - gain * (not row["dense"]))
    assert of(judge(rows), "i").verdict is verdict


@pytest.mark.parametrize(
    ("small", "large", "verdict"),
    [
        (0.05, -0.05, Verdict.SUPPORTED),
        (-0.05, -0.05, Verdict.CONTRADICTED),
        (0.05, 0.05, Verdict.CONTRADICTED),
        (0.0, -0.05, None),
    ],
)
def test_compute_threshold(rows_of, small: float, large: float, verdict: Verdict | None):
    tokens = {6 * 8 * 16: small, 12 * 8 * 16: large}
    points = [{**point, "budget.tokens": budget} for budget in tokens for point in GRID]
    judgement = of(judge(rows_of(points, lambda r: 3 + tokens[r["tokens"]] * (not r["dense"]))), "g")
    if small == 0.0:  # one time in forty noise alone speaks against it
        assert judgement.verdict is not Verdict.SUPPORTED
    else:
        assert judgement.verdict is verdict


@pytest.mark.parametrize(
    ("move", "curve", "verdict"),
    [
        (0.0, 0.03, Verdict.SUPPORTED),
        (1.2, 0.03, Verdict.CONTRADICTED),
        (0.0, 0.0, Verdict.UNRESOLVED),  # any size is as good: there is no best one to depend on anything
        (0.0, -0.03, Verdict.UNRESOLVED),
    ],
)
def test_the_best_size_and_the_total(rows_of, move: float, curve: float, verdict: Verdict):
    def law(row: Row) -> float:
        best = -2 + move * (np.log2(row["s"]) - 2)
        return falling(row) + curve * (np.log2(row["g"]) - best) ** 2 * (not row["dense"])

    def verdicts() -> tuple[Verdict, Verdict]:
        judgement = of(judge(rows_of(GRID, law)), "b")
        finding = next(found for scale, found in judgement.findings.items() if scale != ACROSS)
        if curve > 0:
            assert finding.effect is not None
            assert finding.effect.value == pytest.approx(move, abs=0.15)
        return finding.verdict, judgement.verdict

    # One scale says nothing of the other half.
    whole = Verdict.CONTRADICTED if verdict is Verdict.CONTRADICTED else Verdict.UNRESOLVED
    assert usually(verdicts) == (verdict, whole)


@pytest.mark.parametrize(("move", "verdict"), [(1.0, Verdict.SUPPORTED), (0.0, Verdict.CONTRADICTED)])
def test_the_best_size_and_the_active_size(rows_of, move: float, verdict: Verdict):
    def law(row: Row) -> float:
        best = -2 + move * (row["scale"] == "large")
        return falling(row) + 0.03 * (np.log2(row["g"]) - best) ** 2 * (not row["dense"])

    large = [{"scale": "large", "model.d_model": 32, **point} for point in GRID]
    judgement = of(judge(rows_of(GRID, law) + rows_of(large, law)), "b")
    assert judgement.findings[ACROSS].verdict is verdict
    assert judgement.verdict is verdict


def test_train_follows_or_does_not(rows_of, rng: np.random.Generator):
    follows = rows_of(GRID, falling, train_loss=lambda row: row["loss"] - 0.5)
    assert of(judge(follows), "h").verdict is Verdict.SUPPORTED
    against = rows_of(GRID, falling, train_loss=lambda row: -row["loss"])
    assert of(judge(against), "h").verdict is Verdict.CONTRADICTED


def test_other_learning_rates_are_left_out(rows_of):
    rows = rows_of(GRID, falling)
    other = [{**point, "optimizer.learning_rate": 1.0} for point in GRID[:4]]
    judgement = of(judge([*rows, *rows_of(other, lambda row: 9.0 * row["s"])]), "a")
    assert judgement.verdict is Verdict.SUPPORTED
    assert set(judgement.runs) <= {row["id"] for row in rows}


def test_scales_are_judged_apart_and_all_have_to_agree(rows_of):
    wide = [{**point, "model.d_model": 32, "scale": "wide"} for point in GRID]
    agreed = of(judge([*rows_of(GRID, falling), *rows_of(wide, falling)]), "a")
    assert agreed.verdict is Verdict.SUPPORTED
    assert set(agreed.findings) == {"tiny", "wide"}
    apart = of(judge([*rows_of(GRID, falling), *rows_of(wide, lambda row: -falling(row))]), "a")
    assert apart.verdict is Verdict.CONTRADICTED
    assert "tiny:" in apart.sentence
    assert "wide:" in apart.sentence


def test_a_mean_difference_counts_a_shared_cell_as_often_as_it_is_used(rows_of):
    rows = rows_of(GRID[:4], falling)
    dense, *moe = cells(rows, "loss")
    mean = mean_difference([(cell, dense) for cell in moe])
    values = np.array([[cell.values[seed] - dense.values[seed] for seed in range(3)] for cell in moe])
    assert mean.value == pytest.approx(values.mean(), rel=1e-9)
    assert dense.noise is not None
    # Three runs of weight 1/3 in dense, nine of 1/9 in the others.
    assert mean.error == pytest.approx(dense.noise.deviation * np.sqrt(3 / 9 + 9 / 81), rel=1e-9)
    low, high = mean.interval() or (0, 0)
    assert (high - low) / 2 == pytest.approx(t.ppf(0.975, dense.noise.freedom) * mean.error, rel=1e-9)
    bonferroni = mean.interval(5) or (0, 0)
    assert bonferroni[1] - mean.value == pytest.approx(t.ppf(0.995, dense.noise.freedom) * mean.error, rel=1e-9)


def test_one_exception_among_many_contradicts_everywhere(rows_of):
    points = [moe_layer(s=s, g=g) for s in (2, 4, 8, 16) for g in GS]
    rows = rows_of(
        [DENSE, *points], lambda r: 3 + (0.0 if r["dense"] else -0.2 if (r["s"], r["g"]) == (4, 0.25) else 0.1)
    )
    dense, *moe = cells(rows, "loss")
    finding = everywhere_at_least([(cell, dense) for cell in moe], -COMPARABLE, "MoE less dense")
    assert finding.verdict is Verdict.CONTRADICTED
    assert "g1/4-n16-s4" in finding.sentence
    assert everywhere_at_least([(moe[0], dense)], -COMPARABLE, "x").verdict is Verdict.UNRESOLVED
