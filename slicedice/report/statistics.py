"""Cells and their noise: runs that differ only in their seed are one cell, with a mean and an error."""

import math
import statistics
from dataclasses import dataclass

from slicedice.report.results import Row


@dataclass(frozen=True)
class Cell:
    """Finished runs of one cell. `error` is the standard error of the mean, from the noise
    pooled over cells; None if no cell has two seeds."""

    row: Row
    values: tuple[float, ...]
    error: float | None

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.values)


def cells(rows: list[Row], column: str) -> list[Cell]:
    """Groups the finished rows by cell; the error comes from the noise pooled over all of them."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if row["state"] == "done" and row.get(column) is not None:
            groups.setdefault(row["cell"], []).append(row)
    noise = pooled_deviation([[row[column] for row in group] for group in groups.values()])
    return [
        Cell(
            group[0],
            tuple(row[column] for row in group),
            noise / math.sqrt(len(group)) if noise is not None else None,
        )
        for group in groups.values()
    ]


def pooled_deviation(groups: list[list[float]]) -> float | None:
    """Standard deviation between seeds, pooled over groups: sqrt(sum of squares / degrees of freedom).

    With two or three seeds a cell's own deviation says little; one noise level for all cells is an assumption
    that a report has to state.
    """
    freedom = sum(len(group) - 1 for group in groups)
    if freedom == 0:
        return None
    squares = sum((value - statistics.fmean(group)) ** 2 for group in groups for value in group)
    return math.sqrt(squares / freedom)
