"""Cells and their noise: runs that differ only in their seed are one cell, with a mean and an error.

Runs of one seed read the same batches, so seeds are the blocks of a randomised block design. With two or three of
them a cell's own deviation says little, so noise is pooled over all cells of one scale, budget and training set-up that
have several seeds: that it is one level for all of them is an assumption that a report has to state.
"""

import math
import statistics
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from slicedice.report.results import Row

CELL, BLOCK = ("cell",), ("batches", "seed")
"""What levels of a loss are of, by the columns that name them: what is compared, and what was read."""

RATIOS = ("load_imbalance", "load_balancing_loss")
"""Measures whose noise grows with them, so that it is known, and they are compared, in octaves."""

OWN_NOISE = 4
"""Degrees of freedom from which on a training set-up has noise of its own; else it has its scale's and budget's."""

POOL = ("scale", "tokens", "beside")
"""Columns that name what shares one level of noise: all that runs have but layer, router and seed."""


@dataclass(frozen=True)
class Noise:
    """What seeds do to a loss: its standard deviation, and the degrees of freedom that it was estimated with."""

    deviation: float
    freedom: int

    @cached_property
    def t(self) -> float:
        """What a standard error is multiplied by for a 95 % interval (Student's t)."""
        return student(self.freedom)


def student(freedom: float, error: float = 0.05) -> float:
    """The value that Student's t of so many degrees of freedom exceeds, in size, with probability `error`."""
    from scipy.special import stdtrit  # here, since whoever asks for a status need not wait for it

    return float(stdtrit(freedom, 1 - error / 2))


@dataclass(frozen=True)
class Cell:
    """Finished runs of one cell.

    values: by seed; of `RATIOS` their log2.
    ids: of the runs.
    noise: between cells of one seed, pooled; between seeds, which is more, where seeds are too few to tell these
      apart; None if no cell has two.
    """

    row: Row
    values: dict[int, float]
    noise: Noise | None = None
    ids: tuple[str, ...] = ()
    is_ratio: bool = False

    @property
    def mean(self) -> float:
        """Mean over seeds, of ratios the geometric one; in the unit of the measure."""
        mean = statistics.fmean(self.values.values())
        return 2**mean if self.is_ratio else mean

    @property
    def interval(self) -> tuple[float, float] | None:
        """The mean's 95 % interval, for comparing cells; None if the noise is not known."""
        if self.margin is None:
            return None
        if self.is_ratio:
            return self.mean / 2**self.margin, self.mean * 2**self.margin
        return self.mean - self.margin, self.mean + self.margin

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


def cells(rows: list[Row], column: str, everything: list[Row] | None = None) -> list[Cell]:
    """Groups the finished rows that have a value in `column` by cell.

    Args:
      rows: of the cells.
      column: what is measured.
      everything: the rows that the noise is known from; `rows` if None.
    """
    noise = noises(rows if everything is None else everything, column)
    groups: dict[str, list[Row]] = {}
    for row in _measured(rows, column):
        groups.setdefault(row["cell"], []).append(row)
    return [
        Cell(
            group[0],
            {row["seed"]: row[column] for row in group},
            noise.get(pool(group[0])) or noise.get(pool(group[0])[:2]),
            tuple(row["id"] for row in group),
            column in RATIOS,
        )
        for group in groups.values()
    ]


def pool(row: Row) -> tuple:
    """What the row shares its level of noise with."""
    return tuple(row[name] for name in POOL)


def noises(rows: list[Row], column: str) -> dict[tuple, Noise]:
    """The noise of `column` in each pool, where it has cells with several seeds.

    And for each scale and budget alone that of the pool which knows it best: what stands in where there is none of
    its own, or one known with less than `OWN_NOISE`.
    """
    seeds = Counter(row["cell"] for row in _measured(rows, column))
    pools: dict[tuple, list[Row]] = {}
    for row in _measured(rows, column):
        if seeds[row["cell"]] > 1:  # a cell of one run has a level of its own, and tells nothing
            pools.setdefault(pool(row), []).append(row)
    found = {}
    for key, members in pools.items():
        # Where blocks leave nothing over, the noise between seeds stands in: it is what a seed does to all cells more.
        noise = residual_noise(members, column, [CELL, BLOCK]) or residual_noise(members, column, [CELL])
        found |= {key: noise} if noise else {}
    floors = {key[:2]: noise for key, noise in sorted(found.items(), key=lambda item: item[1].freedom)}
    return {key: noise for key, noise in found.items() if noise.freedom >= OWN_NOISE} | floors


def _measured(rows: list[Row], column: str) -> list[Row]:
    done = [row for row in rows if row["state"] == "done" and row.get(column) is not None]
    if column in RATIOS:
        return [{**row, column: math.log2(row[column])} for row in done if row[column] > 0]
    return done


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
