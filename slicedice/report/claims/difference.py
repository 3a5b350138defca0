"""Differences between cells, averaged over pairs, with the error that pooled noise gives them."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from slicedice.report.statistics import Cell, pool, student

Pair = tuple[Cell, Cell]
"""Two cells whose difference, first less second, is of interest."""


@dataclass(frozen=True)
class Difference:
    """A mean difference in the unit of its measure, its standard error and the degrees of freedom of that.

    error: None if no cell of some pair's scale has two seeds, so that nothing is known of noise.
    """

    value: float
    error: float | None
    freedom: float = math.inf

    def over(self, amount: float) -> "Difference":
        """The difference for each unit of `amount`."""
        return Difference(self.value / amount, None if self.error is None else self.error / amount, self.freedom)

    def interval(self, tests: int = 1) -> tuple[float, float] | None:
        """The 95 % interval (Student's t); of one among `tests`, all of which hold together (Bonferroni)."""
        if self.error is None:
            return None
        half = student(self.freedom, 0.05 / tests) * self.error
        return self.value - half, self.value + half


def shared(pair: Pair) -> list[int]:
    """The seeds that both cells have."""
    return sorted(pair[0].values.keys() & pair[1].values.keys())


def mean_difference(pairs: Sequence[Pair]) -> Difference:
    """The mean over pairs of their differences, each taken seed by seed over the seeds that both cells have.

    Runs are independent but for what a seed does to all cells of a scale, which differences leave out. So with weight
    w of each run in the mean, its variance is the sum over scales of sigma^2 * sum(w^2); a cell that many pairs share,
    as the dense one, counts as often as it is used. Degrees of freedom are Welch's and Satterthwaite's.

    Args:
      pairs: at least one, each with a shared seed.
    """
    weights: Counter[tuple[str, int]] = Counter()
    value, noise, home = 0.0, {}, {}
    for pair in pairs:
        seeds = shared(pair)
        for cell, sign in zip(pair, (1, -1), strict=True):
            noise[pool(cell.row)] = cell.noise
            for seed in seeds:
                share = sign / len(seeds) / len(pairs)
                weights[cell.row["cell"], seed] += share  # type: ignore[assignment] - counts may be fractions
                home[cell.row["cell"], seed] = pool(cell.row)
                value += share * cell.values[seed]
    if any(level is None for level in noise.values()):
        return Difference(value, None)
    squares: dict[tuple, float] = {}
    for run, weight in weights.items():
        squares[home[run]] = squares.get(home[run], 0.0) + weight**2
    parts = [(level.deviation**2 * squares[key], level.freedom) for key, level in noise.items() if level]
    variance = sum(part for part, _ in parts)
    if not variance:
        return Difference(value, 0.0)
    return Difference(value, math.sqrt(variance), variance**2 / sum(part**2 / freedom for part, freedom in parts))
