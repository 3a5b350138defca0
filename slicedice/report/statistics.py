"""Cells and their noise: runs that differ only in their seed are one cell, with a mean and an error.

Runs of one seed read the same batches, so seeds are the blocks of a randomised block design. With two or three of
them a cell's own deviation says little, so noise is pooled: one level for all cells is an assumption that a report
has to state.
"""

import math
import statistics
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from slicedice.report.results import Row

CELL, BLOCK = ("cell",), ("batches", "seed")
"""What levels of a loss are of, by the columns that name them: what is compared, and what was read."""


@dataclass(frozen=True)
class Noise:
    """What seeds do to a loss: its standard deviation, and the degrees of freedom that it was estimated with."""

    deviation: float
    freedom: int

    @property
    def t(self) -> float:
        """What a standard error is multiplied by for a 95 % interval (Student's t)."""
        return float(stdtrit(self.freedom, 0.975))


@dataclass(frozen=True)
class Cell:
    """Finished runs of one cell.

    values: by seed.
    noise: between cells of one seed, pooled; between seeds, which is more, where seeds are too few to tell these
      apart; None if no cell has two.
    """

    row: Row
    values: dict[int, float]
    noise: Noise | None = None

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values.values())

    @property
    def margin(self) -> float | None:
        """Half the width of the mean's 95 % interval, for comparing cells: without what a seed does to all alike."""
        return self.noise and self.noise.t * self.noise.deviation / math.sqrt(len(self.values))


def difference(cell: Cell, other: Cell) -> tuple[float, float | None]:
    """cell - other, seed by seed over those they share, and half the width of its 95 % interval, None if unknown.

    For cells that read the same batches.
    """
    shared = cell.values.keys() & other.values.keys()
    if not shared:
        return cell.mean - other.mean, None
    effect = statistics.fmean(cell.values[seed] - other.values[seed] for seed in shared)
    return effect, cell.noise and cell.noise.t * cell.noise.deviation * math.sqrt(2 / len(shared))


def dense_beside(cell: Cell, all_cells: list[Cell]) -> Cell | None:
    """The dense cell whose settings are those of `cell` in all but layer and router."""
    same = (other for other in all_cells if other.row["dense"] and other.row["beside"] == cell.row["beside"])
    return next(same, None)


def cells(rows: list[Row], column: str) -> list[Cell]:
    """Groups the finished rows that have a value in `column` by cell; the noise is pooled over all of them."""
    measured = [row for row in rows if row["state"] == "done" and row.get(column) is not None]
    groups: dict[str, list[Row]] = {}
    for row in measured:
        groups.setdefault(row["cell"], []).append(row)
    # Where blocks leave nothing over, the noise between seeds stands in: it is what a seed does to all cells more.
    noise = residual_noise(measured, column, [CELL, BLOCK]) or residual_noise(measured, column, [CELL])
    return [Cell(group[0], {row["seed"]: row[column] for row in group}, noise) for group in groups.values()]


def residual_noise(rows: list[Row], column: str, factors: list[tuple[str, ...]]) -> Noise | None:
    """The noise left once a least-squares fit has taken out a level for each value of each factor.

    Args:
      rows: with a value in `column`.
      column: what is measured.
      factors: columns that together name a level; the levels of a row's factors add up.

    Returns:
      sqrt(sum of squares / degrees of freedom) and these; None if no degree is left.
    """
    if not rows:
        return None
    levels = [[tuple(row[name] for name in factor) for row in rows] for factor in factors]
    design = np.array([[float(own == level) for own in all_] for all_ in levels for level in dict.fromkeys(all_)]).T
    values = np.array([row[column] for row in rows])
    fit, _, rank, _ = np.linalg.lstsq(design, values)
    freedom = len(rows) - int(rank)
    return Noise(math.sqrt(((values - design @ fit) ** 2).sum() / freedom), freedom) if freedom else None
