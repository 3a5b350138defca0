"""What is recommended fits the budget, is what a known law has as its best, and is called what it is."""

from fractions import Fraction

import numpy as np
import pytest

from slicedice.report.claims import COMPARABLE
from slicedice.report.recipe.answer import answer, reach
from slicedice.report.recipe.candidates import candidates, shape
from slicedice.report.recipe.law import fit
from slicedice.report.recipe.next_runs import propose
from tests.recipe.known import FIVE, Laboratory, cells_at, dense_spec, of_another_form, of_its_form

STUDY = ("10m", "20m", "50m", "80m", "110m", "200m", "300m")
VOCABULARY = 100_352


def known():
    return [dense_spec(scale).model for scale in STUDY]


def asked(observations, active=300_000_000, total=3_000_000_000):
    """The answer to a request, and the true loss of each candidate."""
    dense = shape(active, VOCABULARY, known())
    found, _ = candidates(dense, 20 * active, total, observations)
    return answer(fit(observations), found)


def behind(given, truth):
    """How much worse the chosen candidate truly is than the best one."""
    losses = [truth(candidate.point) for candidate in given.candidates]
    return truth(given.chosen.candidate.point) - min(losses), given.candidates[int(np.argmin(losses))]


def test_the_optimum_of_a_known_law_is_recovered_and_covered(rng):
    covered, regrets = [], []
    for _ in range(20):
        truth = of_its_form(drift=rng.uniform(-0.3, 0.3))
        given = asked(Laboratory(rng, truth).grid(FIVE))
        regret, best = behind(given, truth)
        coarsest, finest = given.granularities
        covered.append(finest <= best.granularity <= coarsest)
        regrets.append(regret)
        assert given.is_settled
    assert max(regrets) < COMPARABLE
    assert np.mean(covered) >= 0.8  # 95 % of 20, and some luck


def test_a_law_of_another_form_is_answered_nearly_as_well(rng):
    for _ in range(5):
        given = asked(Laboratory(rng, of_another_form, noise=0.005).grid(FIVE))
        assert behind(given, of_another_form)[0] < COMPARABLE


def test_dense_is_recommended_where_experts_hurt(rng):
    truth = of_its_form(drift=0.0, gain=-0.01, dense=-0.1)
    assert asked(Laboratory(rng, truth).grid(FIVE)).chosen.candidate.point.dense


def test_little_data_settles_nothing_and_what_is_proposed_does(rng):
    truth = of_its_form(drift=rng.uniform(-0.3, 0.3))
    lab = Laboratory(rng, truth)
    observations = lab.grid(["10m"])[::4]
    first = asked(observations)
    assert not first.is_settled
    law = fit(observations)
    proposal = propose(law, first, [cell for scale in FIVE for cell in cells_at(scale, law)])
    assert 0 < len(proposal.cells) <= 24
    assert not {cell.point for cell in proposal.cells} & {o.point for o in observations}
    second = asked([*observations, *(lab.measure(cell.point) for cell in proposal.cells)])
    assert second.regret < 0.1 * first.regret
    assert behind(second, truth)[0] < 2 * COMPARABLE


def test_the_cheapest_scales_that_suffice_are_proposed(rng):
    lab = Laboratory(rng, of_its_form(drift=0.0))
    observations = lab.grid(["10m", "20m"])
    law, near = fit(observations), asked(observations, 60_000_000, 600_000_000)
    cells = [cell for scale in STUDY for cell in cells_at(scale, law)]
    proposal = propose(law, near, cells)
    if near.is_settled:
        assert proposal.cells == []
    else:
        assert proposal.settles
        used = {cell.scale for cell in proposal.cells}
        without = propose(law, near, [cell for cell in cells if cell.scale != max(used, key=STUDY.index)])
        assert not without.settles or max(STUDY.index(c.scale) for c in without.cells) > max(map(STUDY.index, used))


def test_nothing_exceeds_the_memory_limit(rng):
    observations = Laboratory(rng, of_its_form(drift=0.0)).grid(["10m"])
    for _ in range(5):
        active = int(rng.integers(15_000_000, 400_000_000))
        total = int(active * rng.uniform(1.1, 20))
        dense = shape(active, VOCABULARY, known())
        found, allowed = candidates(dense, 20 * active, total, observations)
        assert found[0].model == dense
        for candidate in found[1:]:
            (experts,) = candidate.model.layer.experts
            assert candidate.model.parameters() <= total
            assert candidate.model.layer.active_width == 1
            assert experts.n > experts.k
            assert candidate.point.s == float(experts.n * experts.g) <= 512
        largest = max(found[1:], key=lambda c: c.point.s, default=None)
        if largest and allowed is None:  # memory is what ends it: the next multiple of 8 does not fit
            (experts,) = largest.model.layer.experts
            more = (experts.n + 8 + 8 * experts.k) * experts.g
            per_s = (largest.model.parameters() - dense.parameters()) / (largest.point.s - 1)
            assert dense.parameters() + per_s * (float(more) - 1) > total


def test_sparsities_far_past_the_results_are_not_considered(rng):
    observations = [o for o in Laboratory(rng, of_its_form(drift=0.0)).grid(["10m"]) if o.point.s <= 4]
    dense = shape(300_000_000, VOCABULARY, known())
    found, allowed = candidates(dense, 6_000_000_000, 30_000_000_000, observations)
    assert max(c.point.s for c in found) == 8
    assert allowed is not None
    assert allowed > 250


@pytest.mark.parametrize("scale", STUDY)
def test_the_studys_sizes_have_the_studys_shapes(scale):
    model = dense_spec(scale).model
    assert shape(model.parameters(), VOCABULARY, known()) == model


def test_other_sizes_have_shapes_between(rng):
    for _ in range(10):
        active = int(np.exp(rng.uniform(np.log(2e7), np.log(2e9))))
        model = shape(active, VOCABULARY, known())
        assert model.parameters() == pytest.approx(active, rel=0.1)
        assert model.d_model % model.heads == 0
        assert (model.d_model // model.heads) % 2 == 0
        around = [other.layers for other in known() if other.d_model <= model.d_model]
        assert model.layers >= max(around, default=1)
        assert model.d_ff == 4 * model.d_model


def test_reach_is_in_octaves(rng):
    observations = Laboratory(rng, of_its_form(drift=0.25)).grid(["10m", "20m"])
    given = asked(observations, 300_000_000)
    found = {r.name: r for r in reach(given.chosen, observations)}
    assert found["tokens"].outside == pytest.approx(np.log2(6e9 / 4e8), abs=0.01)
    assert found["active"].outside > 6
    assert found["s"].outside == 0
    below = asked(observations, 8_000_000, 9_000_000)
    assert {r.name: r for r in reach(below.chosen, observations)}["tokens"].outside == pytest.approx(
        np.log2(1.6e8 / 2e8), abs=0.01
    )


def test_what_was_not_tried_is_not_recommended_but_leaves_doubt(rng):
    # The best is finer than anything measured.
    lab = Laboratory(rng, of_its_form(drift=0.0, best=6.0))
    observations = [o for o in lab.grid(["10m", "20m", "50m"]) if o.point.g >= 1 / 8]
    given = asked(observations, 60_000_000, 600_000_000)
    untried = {o.candidate.granularity for o in given.options if not o.candidate.tried}
    assert untried == {Fraction(1, 16)}
    assert given.chosen.candidate.granularity == Fraction(1, 8)
    assert given.granularities[1] == Fraction(1, 16)
    assert not given.is_settled


def test_granularities_are_exact(rng):
    given = asked(Laboratory(rng, of_its_form(drift=0.0)).grid(FIVE))
    assert all(isinstance(g, Fraction) and g.numerator == 1 for g in given.granularities)
    shares = [option.share for option in given.options]
    assert sum(shares) == pytest.approx(1)
    assert given.chosen.behind == 0
