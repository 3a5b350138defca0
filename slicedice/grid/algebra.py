"""The grid algebra: lists of override dicts, and four ways to make new ones from them.

A point is a dict from names to values. Names are config fields such as "optimizer.learning_rate", or, until
`each` turns them into fields, letters of one's own such as "s" and "g".
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

Point = dict[str, Any]
Points = list[Point]


def axis(name: str, values: Iterable[Any]) -> Points:
    """One point for each value of one name."""
    return [{name: value} for value in values]


def chain(*grids: Points) -> Points:
    """All points, one grid after the other."""
    return list(itertools.chain(*grids))


def product(*grids: Points) -> Points:
    """Every combination of one point from each grid; the last grid turns fastest.

    Raises:
      ValueError: two grids set the same name.
    """
    return [_merge(points) for points in itertools.product(*grids)]


def zip_(*grids: Points) -> Points:
    """The first points of all grids together, then the second ones, and so on.

    Raises:
      ValueError: the grids differ in length, or two set the same name.
    """
    return [_merge(points) for points in zip(*grids, strict=True)]


def where(grid: Points, keep: Callable[..., bool]) -> Points:
    """The points for which `keep(**point)` holds."""
    return [point for point in grid if keep(**point)]


def each(grid: Points, make: Callable[..., Point]) -> Points:
    """The points that `make(**point)` returns."""
    return [make(**point) for point in grid]


def _merge(points: Iterable[Point]) -> Point:
    merged: Point = {}
    for point in points:
        twice = merged.keys() & point.keys()
        if twice:
            raise ValueError(f"two grids set {', '.join(sorted(twice))}: combine grids that set different names")
        merged |= point
    return merged
