"""Intervals of what is no mean of differences: drawn again, always with the same random numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slicedice.report.statistics import Cell

RESAMPLES = 2000


SURE = 0.95
"""Share of draws in which there has to be a best granularity for anything to be said of it."""

HARDLY = 0.5
"""Octaves of granularity, for each doubling of the sparsity or between scales, by which the best one hardly moves."""

FARTHEST = 3.0
"""Octaves beyond which a best granularity, or its move, is not followed."""


@dataclass(frozen=True)
class BestSize:
    """The best granularity by a parabola in log2 g, [1 + RESAMPLES]: first as measured, then with noise drawn anew.

    log2_g: at the mean of log2 s. move: octaves for each doubling of s. inside: share of the draws in which there is a
    lowest point, at most an octave outside of what was tried.
    """

    log2_g: np.ndarray
    move: np.ndarray
    inside: float


def best_size(lines: Sequence[Sequence[Cell]], stream: int = 0) -> BestSize | None:
    """Fits parabolas of one curvature to all lines, whose lowest point moves evenly with log2 s.

    Args:
      lines: cells of one sparsity each; at least two sparsities, and three granularities in all.
      stream: of random numbers; two fits that are compared have their own.

    Returns:
      None if the noise is not known.
    """
    members = [cell for line in lines for cell in line]
    noise = [cell.noise for cell in members]
    if not all(noise):
        return None
    v, u = (np.log2([cell.row[name] for cell in members]) for name in ("g", "s"))
    u = u - u.mean()
    level = np.array([[float(cell in line) for line in lines] for cell in members])
    design = np.column_stack([level, v, v * v, v * u])
    seeds = np.array([len(cell.values) for cell in members])
    errors = np.array([level.deviation for level in noise if level]) / seeds**0.5
    rng = np.random.default_rng(stream)  # a report of the same runs says the same
    means = np.array([cell.mean for cell in members])
    y = means + np.vstack([np.zeros(len(members)), rng.normal(0, errors, (RESAMPLES, len(members)))])
    slope, curve, turn = np.linalg.lstsq(design * seeds[:, None] ** 0.5, (y * seeds**0.5).T)[0][-3:]
    with np.errstate(divide="ignore", invalid="ignore"):
        # Without a lowest point the best lies at an end, however far.
        best = np.where(curve > 0, -slope / (2 * curve), -np.sign(slope) * np.inf)
        move = np.where(curve > 0, -turn / (2 * curve), -np.sign(turn) * np.inf)
    inside = (curve > 0) & (best >= v.min() - 1) & (best <= v.max() + 1)
    best = np.clip(best, v.min() - FARTHEST, v.max() + FARTHEST)
    return BestSize(best, np.clip(move, -FARTHEST, FARTHEST), float(inside[1:].mean()))


def rank_correlations(values: np.ndarray) -> np.ndarray:
    """Spearman's, of pairs [..., pairs, 2]; 0 where one of the two is constant."""
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=-2)
    ranks = ranks - ranks.mean(axis=-2, keepdims=True)
    one, other = ranks[..., 0], ranks[..., 1]
    norm = np.sqrt((one**2).sum(axis=-1) * (other**2).sum(axis=-1))
    return np.divide((one * other).sum(axis=-1), norm, out=np.zeros_like(norm), where=norm > 0)


def percentiles(draws: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of bootstrap draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)
