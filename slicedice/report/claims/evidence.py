"""What a report knows of one scale and budget, cut the ways that claims ask for."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from slicedice.report.claims.difference import Pair, shared
from slicedice.report.results import Row
from slicedice.report.statistics import Cell, cells

LAYER = ("granularity", "n", "generalist", "wiring")
"""Columns that together name a layer."""
ARM = ("router", "alpha", "gamma", "routing")
"""Columns that together say how tokens reach experts."""


class Evidence:
    """The finished runs of one scale and budget that share everything but layer, router and seed."""

    def __init__(self, rows: list[Row], everything: list[Row]):
        """Takes the rows of a pool; `everything` is what its noise is known from."""
        self.scale, self.tokens = rows[0]["scale"], rows[0]["tokens"]
        most = Counter(row["beside"] for row in rows).most_common(1)[0][0]  # leaves out other learning rates and such
        self.rows = [row for row in rows if row["beside"] == most]
        self._everything = everything
        self._cells: dict[str, list[Cell]] = {}

    def cells(self, measure: str = "loss") -> list[Cell]:
        """All cells with a value of `measure`."""
        if measure not in self._cells:
            self._cells[measure] = cells(self.rows, measure, self._everything)
        return self._cells[measure]

    def dense(self, measure: str = "loss") -> Cell | None:
        """The dense cell."""
        return next((cell for cell in self.cells(measure) if cell.row["dense"]), None)

    def routed(self, measure: str = "loss", **wanted: Any) -> list[Cell]:
        """The cells with experts whose columns are as wanted."""
        return [
            cell
            for cell in self.cells(measure)
            if not cell.row["dense"] and all(cell.row[name] == value for name, value in wanted.items())
        ]

    @cached_property
    def main(self) -> list[Cell]:
        """Homogeneous cells, sparse and without a generalist, of the one dropless arm that has most of them."""
        cells_ = [c for c in self.routed(kind="homogeneous", generalist=None, router="dropless") if c.row["s"] > 1]
        arms = Counter(arm(cell) for cell in cells_)
        # Of arms with as many cells, the one without a bias, and with the stronger loss: the study's own.
        most = max(arms, key=lambda own: (arms[own], -(own[2] or 0), own[1] or 0), default=None)
        return [cell for cell in cells_ if arm(cell) == most]


def arm(cell: Cell) -> tuple:
    """How the cell's tokens reach experts."""
    return tuple(cell.row[name] for name in ARM)


def layer(cell: Cell) -> tuple:
    """The cell's layer."""
    return tuple(cell.row[name] for name in LAYER)


def match(cells_: Iterable[Cell], others: Iterable[Cell], key: Callable[[Cell], Any]) -> list[Pair]:
    """Pairs of cells with the same `key` that share a seed."""
    known = {key(other): other for other in others}
    pairs = [(cell, known[key(cell)]) for cell in cells_ if key(cell) in known]
    return [pair for pair in pairs if shared(pair)]


def by_scale(rows: list[Row]) -> list[list[Evidence]]:
    """For each scale the evidence of its budgets, the one with most cells first."""
    pools: dict[tuple, list[Row]] = {}
    for row in rows:
        if row["state"] == "done":
            pools.setdefault((row["scale"], row["tokens"]), []).append(row)
    scales: dict[str, list[Evidence]] = {}
    for members in pools.values():
        evidence = Evidence(members, rows)
        scales.setdefault(evidence.scale, []).append(evidence)
    return [sorted(found, key=lambda e: (-len(e.cells()), -e.tokens)) for found in scales.values()]


def lines(cells_: Sequence[Cell], fixed: str, grows: str) -> list[list[Cell]]:
    """Cells of one value of `fixed`, in the order of `grows`."""
    lines: dict[float, list[Cell]] = {}
    for cell in sorted(cells_, key=lambda cell: cell.row[grows]):
        lines.setdefault(cell.row[fixed], []).append(cell)
    return list(lines.values())


def generalists(scale: Evidence, wiring: str) -> list[Pair]:
    """Layers with a generalist, each with the one without of equal granularity, sparsity and routing."""

    def key(cell: Cell) -> tuple:
        return arm(cell), cell.row["granularity"], cell.row["s"]

    with_ = scale.routed(wiring=wiring)
    without = scale.routed(generalist=None)
    # Several generalists have the same partner; `match` takes one partner for each key.
    return match(with_, without, key)


def parents(scale: Evidence) -> list[Pair]:
    """Heterogeneous layers, each with the better of its homogeneous parents at equal sparsity and routing."""
    pure = {(arm(c), c.row["granularity"], c.row["s"]): c for c in scale.routed(kind="homogeneous", generalist=None)}
    families: dict[tuple, list[tuple[Cell, list[Cell]]]] = {}
    for cell in scale.routed(kind="heterogeneous", generalist=None):
        both = [pure.get((arm(cell), g, cell.row["s"])) for g in cell.row["granularity"].split("+")]
        known = [parent for parent in both if parent and shared((cell, parent))]
        if len(known) == len(both):
            families.setdefault((arm(cell), cell.row["granularity"]), []).append((cell, known))
    pairs: list[Pair] = []
    for members in families.values():
        # The better parent is chosen once for all sparsities: chosen at each, noise would choose, and favour it.
        means = np.mean([[parent.mean for parent in both] for _, both in members], axis=0)
        pairs += [(cell, both[int(np.argmin(means))]) for cell, both in members]
    return pairs


def routers(scale: Evidence, measure: str) -> list[Pair]:
    """Default-routed cells, each with the dropless one of the same layer and balancing."""

    def key(cell: Cell) -> tuple:
        return (*layer(cell), cell.row["alpha"], cell.row["gamma"])

    return match(scale.routed(measure, router="default"), scale.routed(measure, router="dropless"), key)


def balanced(scale: Evidence, measure: str, one: tuple[float, float], other: tuple[float, float]) -> list[Pair]:
    """Dropless cells of one setting of (alpha, gamma), each with that of the other and the same layer."""
    first, second = (scale.routed(measure, router="dropless", alpha=a, gamma=g) for a, g in (one, other))
    return match(first, second, layer)
