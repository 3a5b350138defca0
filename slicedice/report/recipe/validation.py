"""Cross-validation: how well the law tells results that it has not seen."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slicedice.report.recipe.law import Observation, fit

FOLDS = 5
ENOUGH = 3
"""Set-ups from which on each is left out whole: that is what an answer for another budget asks of the law."""


@dataclass(frozen=True)
class Validation:
    """What was left out, and the errors of predicting it.

    left_out: in words. level: root mean square error in nats. difference: the same once each set-up's mean error is
    taken out: of differences between layers, which the choice rests on. covered: share of results in their 95 %
    interval.
    """

    left_out: str
    level: float
    difference: float
    covered: float


def cross_validate(observations: Sequence[Observation], noise: tuple[float, int]) -> Validation | None:
    """Predicts every result from the others: without its whole set-up, or where there are few, by folds.

    None if there are too few results.
    """
    setups = sorted({o.setup for o in observations})
    if len(observations) < 2 * FOLDS:
        return None
    rng = np.random.default_rng(0)
    if len(setups) >= ENOUGH:
        parts, words = [setups.index(o.setup) for o in observations], "each model size and budget in turn"
    else:
        parts, words = list(rng.permutation(len(observations)) % FOLDS), "a fifth of the cells in turn"
    errors, inside = np.zeros(len(observations)), np.zeros(len(observations), bool)
    for part in sorted(set(parts)):
        own = [i for i, p in enumerate(parts) if p == part]
        law = fit([o for o, p in zip(observations, parts, strict=True) if p != part], noise)
        predicted = law.predict([observations[i].point for i in own])
        seen = np.array([observations[i].loss for i in own])
        errors[own] = np.median(predicted, axis=0) - seen
        # What is left out has noise of its own.
        seeds = np.sqrt([observations[i].seeds for i in own])
        low, high = np.quantile(predicted + rng.normal(0, law.noise / seeds, predicted.shape), [0.025, 0.975], axis=0)
        inside[own] = (low <= seen) & (seen <= high)
    means = {s: errors[[o.setup == s for o in observations]].mean() for s in setups}
    apart = errors - np.array([means[o.setup] for o in observations])
    return Validation(words, _rms(errors), _rms(apart), float(inside.mean()))


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt((errors**2).mean()))
