"""The law is found again in results that were made from one, with honest intervals."""

import numpy as np
import pytest

from slicedice.report.recipe.law import PRIOR, Observation, Point, fit
from slicedice.report.recipe.validation import cross_validate
from tests.recipe.known import FIVE, Laboratory, of_another_form, of_its_form


def test_coefficients_lie_in_their_intervals(rng):
    drift = rng.uniform(-0.3, 0.3)
    names, inside = list(PRIOR), []
    for _ in range(20):
        law = fit(Laboratory(rng, of_its_form(drift=drift)).grid(FIVE))
        low, high = np.quantile(law.coefficients[:, : len(names)], [0.025, 0.975], axis=0)
        for name, truth in (("s", -0.03), ("1/g N", 2 * 0.004 * drift), ("1/g 1/g", 0.004), ("s s", 0.0)):
            # Over the E that is found, effects are larger or smaller than over the true one, alike.
            scale = 1.8 + np.exp(0.75) - law.irreducible.mean()
            i = names.index(name)
            truth = truth * np.exp(0.75) / scale
            inside.append(low[i] - 0.1 * abs(truth) <= truth <= high[i] + 0.1 * abs(truth))
    assert np.mean(inside) > 0.8


def test_what_results_do_not_tell_keeps_its_prior(rng):
    law = fit(Laboratory(rng, of_its_form(drift=0.2)).grid(["20m"]))
    spread = dict(zip(PRIOR, law.coefficients.std(axis=0), strict=False))
    for name in ("N", "D", "s N", "1/g N", "dense D"):
        assert spread[name] == pytest.approx(PRIOR[name][1], rel=0.15)
    for name in ("s", "1/g", "1/g 1/g"):
        assert spread[name] < 0.2 * PRIOR[name][1]
    assert set(law.irreducible) == {0.0}


def test_the_law_of_nothing_is_its_prior():
    law = fit([])
    assert law.coefficients.shape == (2000, len(PRIOR))
    np.testing.assert_allclose(law.coefficients.std(axis=0), [sd for _, sd in PRIOR.values()], rtol=0.2)
    assert law.coefficients[:, 1].mean() == pytest.approx(PRIOR["N"][0], abs=0.02)
    assert not law.has_experts


def test_a_few_runs_gone_wrong_do_not_bend_it(rng):
    observations = Laboratory(rng, of_its_form(drift=0.2)).grid(FIVE)
    bent = list(observations)
    # Not the dense ones: of those there are too few for the others to say that one is wrong.
    for i in rng.choice([i for i, o in enumerate(bent) if not o.point.dense], 6, replace=False):
        bent[i] = Observation(bent[i].point, bent[i].loss + 1.0, 1)
    where = [o.point for o in observations]
    clean, robust = (np.median(fit(found).predict(where), axis=0) for found in (observations, bent))
    # A least-squares fit of the same results is off by more than a tenth.
    assert np.abs(robust - clean).max() < 0.02


def test_seeds_count(rng):
    truth = of_its_form(drift=0.0)
    grid = Laboratory(rng, truth).grid(["20m"])
    one = fit(grid)
    many = fit([Observation(o.point, truth(o.point) + rng.normal(0, 0.01 / 4), 16) for o in grid])
    i = list(PRIOR).index("1/g")
    assert many.coefficients[:, i].std() < 0.5 * one.coefficients[:, i].std()
    assert many.noise == pytest.approx(0.01, rel=0.5)


def test_predictions_of_one_setup_share_its_offset(rng):
    law = fit(Laboratory(rng, of_its_form(drift=0.0)).grid(FIVE))
    new = [Point(3e8, 6e9, 8, 0.25), Point(3e8, 6e9, 8, 0.125)]
    draws = law.predict(new)
    assert (draws[:, 0] - draws[:, 1]).std() < 0.1 * draws[:, 0].std()
    seen = law.predict([law.observations[0].point])
    assert seen.std() < 0.5 * draws[:, 0].std()


def test_leaving_out_whole_scales_tells_the_error_of_another_budget(rng):
    lab = Laboratory(rng, of_its_form(drift=0.2), noise=0.01)
    found = cross_validate(lab.grid(FIVE), (0.02, 4))
    assert found is not None
    assert found.left_out == "each model size and budget in turn"
    assert 0.005 < found.difference < 0.03
    assert found.level < 0.15
    assert found.covered > 0.8
    few = cross_validate(lab.grid(["10m"]), (0.02, 4))
    assert few is not None
    assert few.left_out == "a fifth of the cells in turn"
    assert cross_validate(lab.grid(["10m"])[:9], (0.02, 4)) is None


def test_a_law_of_another_form_shows_in_the_validation(rng):
    lab = Laboratory(rng, of_another_form, noise=0.002, offset=0.0)
    found = cross_validate(lab.grid(FIVE), (0.002, 4))
    assert found is not None
    assert found.difference > 2 * 0.002
