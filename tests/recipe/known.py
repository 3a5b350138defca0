"""Laws that tests know, and results measured from them with noise."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from slicedice.grid import load_config
from slicedice.report.recipe.law import Law, Observation, Point, fit
from slicedice.report.recipe.next_runs import NextCell, possible
from slicedice.spec import RunSpec, resolve

Truth = Callable[[Point], float]

FIVE = ("10m", "20m", "50m", "80m", "110m")


def of_its_form(
    *, drift: float, gain: float = 0.03, curve: float = 0.004, dense: float = 0.0, best: float = 3.0
) -> Truth:
    """A law of the recipe's own form, whose best fineness is 3 octaves at 10M parameters and drifts with their log2."""

    def loss(p: Point) -> float:
        n, d, s, v = np.log2([p.active / 1e7, p.tokens / 1e9, p.s, 1 / p.g])
        level = 0.75 - 0.06 * n - 0.07 * d
        if p.dense:
            return 1.8 + float(np.exp(level + dense))
        return 1.8 + float(np.exp(level - gain * s + curve * (v - best + drift * n) ** 2))

    return loss


def of_another_form(p: Point) -> float:
    """An additive law as of Ludziejewski et al. (arXiv 2402.07871): of N and D, with a penalty for coarse experts.

    Sparsity multiplies the parameters that count, less and less; fine experts cost something, which they leave out.
    """
    effective = p.active * p.s ** (0.5 - 0.02 * np.log2(p.s))
    coarse = 0.0 if p.dense else 2.1 * p.g**0.58 + 0.15 * np.log2(1 / p.g) ** 1.5
    return 1.6 + (18.1 + (3.0 if p.dense else coarse)) / effective**0.147 + 30.8 / p.tokens**0.147


@cache
def dense_spec(scale: str) -> RunSpec:
    """The dense run of one of the study's scales."""
    return resolve(load_config(scale))[0]


def cells_at(scale: str, law: Law | None = None) -> list[NextCell]:
    """The study's cells at a scale that a law does not know."""
    return possible(scale, dense_spec(scale), law or fit([]))


class Laboratory:
    """Measures a truth with noise; every scale has an offset of its own."""

    def __init__(self, rng: np.random.Generator, truth: Truth, noise: float = 0.01, offset: float = 0.01):
        self._rng, self._truth, self._noise = rng, truth, noise
        self._offset, self._offsets = offset, {}

    def measure(self, point: Point) -> Observation:
        if point.active not in self._offsets:
            self._offsets[point.active] = self._rng.normal(0, self._offset)
        loss = self._truth(point) + self._offsets[point.active] + self._rng.normal(0, self._noise)
        return Observation(point, loss, 1)

    def grid(self, scales: Sequence[str]) -> list[Observation]:
        """The study's grid of count and granularity at some scales."""
        return [self.measure(cell.point) for scale in scales for cell in cells_at(scale)]
