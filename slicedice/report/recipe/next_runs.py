"""What to run next: the cheapest cells after which an answer would be settled, by the law's own uncertainty.

An answer is unsettled where some candidate may be better than the chosen one by more than what is called comparable.
What new cells would do to that is known before they are trained: in a linear model the variance of a difference depends
on where is measured, not on what comes out (c-optimal designs; Elfving 1952). Cells are added one by one, each where it
lowers these variances most, at the cheapest scales that suffice.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slicedice.grid.study import STUDY, seeds
from slicedice.report.claims import COMPARABLE
from slicedice.report.recipe.answer import Answer
from slicedice.report.recipe.law import SETUP, Law, Point
from slicedice.report.recipe.reading import point_of
from slicedice.spec import RunSpec, SpecError, moe_layer
from slicedice.spec.layer import parse_layer

MARK = "What slicedice.recipe would run next, for"
"""How the grid files that it writes begin."""

MOST = 24
"""Cells to propose at once: what comes out of them says better than the law what is worth running after."""

NEAR = 1.1
"""How much worse a cheaper set may do where none settles the answer."""

ONE_SIDED = 1.645
"""Standard deviations under which a normal variable is with 95 % probability."""


@dataclass(frozen=True)
class NextCell:
    """A cell to train at a scale, as a grid writes it: `s` and `g`; dense is 1 and "1". flops: of all its seeds."""

    scale: str
    s: int
    g: str
    point: Point
    flops: float


@dataclass(frozen=True)
class Proposal:
    """The cells to run next. settles: whether the law expects the answer to be settled by them."""

    cells: list[NextCell]
    settles: bool

    @property
    def runs(self) -> int:
        """Of all seeds."""
        return sum(seeds(cell.scale) for cell in self.cells)


def possible(scale: str, dense: RunSpec, law: Law) -> list[NextCell]:
    """The study's cells at the scale of a dense run that the law has no results of."""
    known, found = {o.point for o in law.observations}, []
    for s, gs in STUDY.items():
        for g in gs.split():
            try:
                layer = parse_layer(moe_layer(s=s, g=g)["model.experts"])
            except SpecError:
                continue
            model = dataclasses.replace(dense.model, layer=layer)
            if any((e.g * model.d_ff).denominator > 1 for e in layer.experts) or (s == 1 and not layer.is_dense):
                continue
            point = point_of(dataclasses.replace(dense, model=model))
            if point not in known:
                flops = dense.tokens * model.flops_per_token(dense.data.sequence_length) * seeds(scale)
                found.append(NextCell(scale, s, g, point, float(flops)))
    return found


def propose(law: Law, answer: Answer, cells: Sequence[NextCell]) -> Proposal:
    """The cheapest of `cells` that would settle the answer, or come near to what all scales together can do."""
    scales = sorted({cell.scale for cell in cells}, key=lambda s: min(c.flops for c in cells if c.scale == s))
    found: list[tuple[float, list[NextCell]]] = []
    for i in range(len(scales)):
        allowed = [cell for cell in cells if cell.scale in scales[: i + 1]]
        design = _Design(law, answer, allowed)
        chosen = design.grow()
        found.append((design.excess(chosen), [allowed[j] for j in design.prune(chosen)]))
        if found[-1][0] <= 1:
            break
    if not found:
        return Proposal([], False)
    least = max(1.0, NEAR * min(excess for excess, _ in found))
    excess, best = next(item for item in found if item[0] <= least)
    return Proposal(best, excess <= 1)


class _Design:
    """Cells to choose from, as rows of a regression whose precision grows with each that is chosen."""

    def __init__(self, law: Law, answer: Answer, cells: list[NextCell]):
        self.cells = cells
        new = sorted({(c.point.active, c.point.tokens) for c in cells} - set(law.setups))
        wider = dataclasses.replace(law, setups=(*law.setups, *new))
        size = len(law.precision)
        self.precision = np.diag(np.full(size + len(new), SETUP**-2))
        self.precision[:size, :size] = law.precision
        points = [cell.point for cell in cells]
        over = np.maximum(np.median(law.predict(points), axis=0) - np.median(law.irreducible), 1e-3)
        weight = np.array([seeds(cell.scale) for cell in cells]) * over**2 / law.noise**2
        self.rows = wider.features(points) * np.sqrt(weight)[:, None]
        # Candidates that may be better by more than counts, as differences to the chosen one, in nats.
        best = next(i for i, c in enumerate(answer.candidates) if c is answer.chosen.candidate)
        behind = answer.losses - answer.losses[:, [best]]
        may_win = np.flatnonzero(np.quantile(behind, 0.05, axis=0) < -COMPARABLE)
        scale = np.median(answer.losses[:, best]) - np.median(law.irreducible)
        features = wider.features([answer.candidates[i].point for i in [*may_win, best]])
        self.contrasts = (features[:-1] - features[-1]) * scale
        self.bound = (COMPARABLE + np.maximum(np.median(behind[:, may_win], axis=0), 0)) / ONE_SIDED

    def _ratios(self, precision: NDArray) -> NDArray:
        """Standard deviations of the differences, over what settles each."""
        variance = (self.contrasts * np.linalg.solve(precision, self.contrasts.T).T).sum(axis=1)
        return np.sqrt(variance) / self.bound

    def _with(self, chosen: Sequence[int]) -> NDArray:
        rows = self.rows[list(chosen)]
        return self.precision + rows.T @ rows

    def excess(self, chosen: Sequence[int]) -> float:
        """How many times the worst known difference exceeds what would settle it; at most 1 where all are settled."""
        return float(self._ratios(self._with(chosen)).max(initial=0.0))

    def grow(self) -> list[int]:
        """Adds cells until all is settled or `MOST` are chosen."""
        chosen: list[int] = []
        while self.excess(chosen) > 1 and len(chosen) < min(MOST, len(self.cells)):
            left = [i for i in range(len(self.cells)) if i not in chosen]
            chosen.append(max(left, key=lambda i: self._gain(chosen, i)))
        return chosen

    def _gain(self, chosen: list[int], cell: int) -> float:
        """How much a cell lowers the squared ratios of what is not settled yet."""
        precision = self._with(chosen)
        unsettled = self._ratios(precision) > 1
        toward = np.linalg.solve(precision, self.rows[cell])
        lower = (self.contrasts @ toward) ** 2 / (1 + self.rows[cell] @ toward)
        return float((lower / self.bound**2)[unsettled].sum())

    def prune(self, chosen: list[int]) -> list[int]:
        """Drops cells, the costliest first, without which all is as settled."""
        enough = max(1.0, self.excess(chosen))
        for i in sorted(chosen, key=lambda i: -self.cells[i].flops):
            without = [j for j in chosen if j != i]
            if self.excess(without) <= enough * 1.0001:
                chosen = without
        return sorted(chosen)


def grid_file(proposal: Proposal, settings: dict[str, dict[str, Any]], names: dict[str, str], asked: str) -> str:
    """The source of a grid file that trains the cells.

    Args:
      proposal: the cells.
      names: what each scale is loaded by.
      settings: for each scale, fields of its config that the results were trained with.
      asked: what the answer is for, in words.
    """
    scales = list(dict.fromkeys(cell.scale for cell in proposal.cells))
    cells = {scale: [(c.s, c.g) for c in proposal.cells if c.scale == scale] for scale in scales}
    flops = sum(cell.flops for cell in proposal.cells)
    lines = [
        f"    {scale!r}: [\n" + "".join(f"        {cell!r},\n" for cell in cells[scale]) + "    ]," for scale in scales
    ]
    fields = [f"    {scale!r}: {settings.get(scale, {})!r}," for scale in scales]
    return "\n".join(
        [
            f'"""{MARK} {asked}.',
            "",
            f"Runs: {proposal.runs}, of {flops:.1e} FLOPs.",
            '"""',
            "",
            "from slicedice.grid import Grid",
            "from slicedice.grid.study import seeds",
            "from slicedice.spec import moe_layer",
            "",
            "# Sparsity and granularity of each cell.",
            "CELLS = {",
            *lines,
            "}",
            "# What the results so far were trained with, where that is not the scale's default.",
            "SETTINGS = {",
            *fields,
            "}",
            f"DEFAULT_SCALES = {tuple(names.get(scale, scale) for scale in scales)!r}",
            "",
            "",
            "def get_grid(scale: str) -> Grid:",
            '    """The grid at `scale`."""',
            "    points = [{**SETTINGS[scale], **moe_layer(s=s, g=g)} for s, g in CELLS[scale]]",
            "    return Grid(points, seeds=seeds(scale))",
            "",
        ]
    )
