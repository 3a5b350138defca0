"""What a grid file returns."""

import dataclasses
from dataclasses import dataclass, field

from slicedice.grid.algebra import Points
from slicedice.grid.figures import Figure


class GridError(ValueError):
    """A grid that cannot be enumerated; the message says which file and point."""


@dataclass(frozen=True)
class Grid:
    """A sweep at one scale: the union of what its figures read, and of points of its own.

    points: overrides of the scale's config, trained beside what the figures read.
    figures: drawn from the results.
    seeds: how many seeds each point is trained with, unless --seeds says otherwise.
    anchors: points that are trained with `anchor_seeds` seeds: the scale's noise is known from them, where the others
      have one seed.
    """

    points: Points = field(default_factory=list)
    figures: tuple[Figure, ...] = ()
    seeds: int = 1
    anchors: Points = field(default_factory=list)
    anchor_seeds: int = 3

    def read_by(self, figure: Figure) -> Points:
        """The points that one of the figures reads: those it declares, or else the grid's own."""
        return figure.points or self.points


def union(*grids: Grid) -> Grid:
    """One grid that trains what any of `grids` trains, with the most seeds of any, and draws all their figures.

    Raises:
      GridError: two grids declare different figures of one name.
    """
    figures: dict[str, Figure] = {}
    for grid in grids:
        for figure in grid.figures:
            reading = dataclasses.replace(figure, points=grid.read_by(figure))
            figures[figure.name] = join(figures[figure.name], reading) if figure.name in figures else reading
    return Grid(
        points=[point for grid in grids for point in grid.points],
        figures=tuple(figures.values()),
        seeds=max(grid.seeds for grid in grids),
        anchors=[point for grid in grids for point in grid.anchors],
        anchor_seeds=max(grid.anchor_seeds for grid in grids),
    )


def join(one: Figure, other: Figure) -> Figure:
    """The figure that reads the runs of both.

    Raises:
      GridError: they share a name and nothing else.
    """
    if dataclasses.replace(one, points=[]) != dataclasses.replace(other, points=[]):
        raise GridError(f"Two different figures are called {one.name!r}: give one of them another name.")
    return dataclasses.replace(one, points=[*one.points, *(p for p in other.points if p not in one.points)])
