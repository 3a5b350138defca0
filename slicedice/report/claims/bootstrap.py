"""Intervals of what is no mean of differences: drawn again, always with the same random numbers."""

from collections.abc import Sequence

import numpy as np

from slicedice.report.statistics import Cell

RESAMPLES = 2000


def best_granularities(lines: Sequence[Sequence[Cell]]) -> np.ndarray | None:
    """log2 of the best granularity of each line, [1 + RESAMPLES, lines]: first as measured, then with noise drawn anew.

    None if the noise is not known. A best outside what was tried counts as one octave beyond it.
    """
    rng = np.random.default_rng(0)  # a report of the same runs says the same
    columns = []
    for line in lines:
        if any(cell.noise is None for cell in line):
            return None
        x = np.log2([cell.row["g"] for cell in line])
        means = np.array([cell.mean for cell in line])
        errors = [cell.noise.deviation / len(cell.values) ** 0.5 for cell in line if cell.noise]
        y = means + np.vstack([np.zeros(len(line)), rng.normal(0, errors, (RESAMPLES, len(line)))])
        curvature, slope, _ = np.polyfit(x, y.T, 2)
        with np.errstate(divide="ignore", invalid="ignore"):
            vertex = np.where(curvature > 0, -slope / (2 * curvature), x[np.argmin(y, axis=1)])
        columns.append(np.clip(vertex, x.min() - 1, x.max() + 1))
    return np.array(columns).T


def rank_correlation(values: np.ndarray) -> float:
    """Spearman's, of two columns; 0 if one of them is constant."""
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=0)
    if (ranks.std(axis=0) == 0).any():
        return 0.0
    return float(np.corrcoef(ranks.T)[0, 1])


def percentiles(draws: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of bootstrap draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)
