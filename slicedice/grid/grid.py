"""What a grid file returns."""

from dataclasses import dataclass, field

from slicedice.grid.algebra import Points
from slicedice.grid.figures import Figure


class GridError(ValueError):
    """A grid that cannot be enumerated; the message says which file and point."""


@dataclass(frozen=True)
class Grid:
    """The points of a sweep at one scale, coarse ones first, and the figures that read them.

    points: overrides of the scale's config.
    figures: drawn from the results.
    seeds: how many seeds each point is trained with, unless --seeds says otherwise.
    """

    points: Points
    figures: tuple[Figure, ...] = field(default=())
    seeds: int = 1
