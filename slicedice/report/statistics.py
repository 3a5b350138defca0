"""Cells and their noise: runs that differ only in their seed are one cell, with a mean and an error."""

import math
import statistics
from dataclasses import dataclass

from scipy.special import stdtrit

from slicedice.report.results import Row


@dataclass(frozen=True)
class Cell:
    """Finished runs of one cell.

    error: standard error of the mean, from the noise pooled over cells; None if no cell has two seeds.
    t: what an error is multiplied by for a 95 % interval: Student's t at the pooled degrees of freedom.
    """

    row: Row
    values: tuple[float, ...]
    error: float | None
    t: float

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values)

    @property
    def margin(self) -> float | None:
        """Half the width of the mean's 95 % interval."""
        return None if self.error is None else self.t * self.error


def difference(cell: Cell, other: Cell) -> tuple[float, float | None]:
    """cell - other, and half the width of its 95 % interval. Seeds count as independent."""
    if cell.error is None or other.error is None:
        return cell.mean - other.mean, None
    return cell.mean - other.mean, cell.t * math.hypot(cell.error, other.error)


def dense_beside(cell: Cell, all_cells: list[Cell]) -> Cell | None:
    """The dense cell whose settings are those of `cell` in all but layer and router."""
    same = (other for other in all_cells if other.row["dense"] and other.row["beside"] == cell.row["beside"])
    return next(same, None)


def cells(rows: list[Row], column: str) -> list[Cell]:
    """Groups the finished rows by cell; the error comes from the noise pooled over all of them."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["state"] == "done" and row.get(column) is not None:
            groups.setdefault(row["cell"], []).append(row)
    values = [[row[column] for row in group] for group in groups.values()]
    noise, freedom = pooled_deviation(values), sum(len(group) - 1 for group in values)
    t = float(stdtrit(freedom, 0.975)) if freedom else math.inf
    return [
        Cell(
            group[0],
            tuple(row[column] for row in group),
            noise / math.sqrt(len(group)) if noise is not None else None,
            t,
        )
        for group in groups.values()
    ]


def pooled_deviation(groups: list[list[float]]) -> float | None:
    """Standard deviation between seeds, pooled over groups: sqrt(sum of squares / degrees of freedom).

    With two or three seeds a cell's own deviation says little; one noise level for all cells is an assumption
    that a report has to state. None if no group has two values.
    """
    freedom = sum(len(group) - 1 for group in groups)
    squares = sum((value - statistics.fmean(group)) ** 2 for group in groups for value in group)
    return math.sqrt(squares / freedom) if freedom else None
