"""From grids at their scales and the command line's wishes to the runs to train, each once.

Seeds are outermost, then scales, then cells from coarse to fine: every prefix of the list is a balanced design, so
that a stopped sweep still plots.
"""

import dataclasses
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from slicedice import files
from slicedice.grid.algebra import Point
from slicedice.grid.figures import Figure
from slicedice.grid.grid import Grid, GridError, join
from slicedice.spec import Execution, RunSpec, SpecError, resolve, run_id, run_name
from slicedice.spec.config import override
from slicedice.spec.errors import require


@dataclass(frozen=True)
class Plan:
    """The runs of a grid by id, in training order, and how to execute each.

    figures: those of the grid, by name.
    reads: the runs that a figure reads, by its name.
    asked: what was asked for beside the grid as its file has it: fields of the config but for execution's, `seeds`,
      `only`.
    """

    runs: dict[str, tuple[RunSpec, Execution]]
    figures: dict[str, Figure] = field(default_factory=dict)
    reads: dict[str, set[str]] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)


def load_grid(name: str, scale: str) -> Grid:
    """Loads the grid file of a name or path and asks it for its grid at `scale`.

    Raises:
      FileError: there is no such file, or it raises; the message names the line.
      GridError: it returns something else than a `Grid`.
    """
    grid = files.call("sweeps", name, "get_grid", scale)
    if not isinstance(grid, Grid):
        path = files.find("sweeps", name)
        raise GridError(f"get_grid({scale!r}) in {path} has to return a slicedice.grid.Grid, not {grid!r}.")
    return grid


def load_config(name: str) -> Any:
    """Loads the experiment of a name or path and returns its config.

    Raises:
      FileError: there is no such file, or it raises; the message names the line.
      GridError: it returns something else than a config.
    """
    config = files.call("experiments", name, "get_config")
    if not isinstance(config, ConfigDict):
        path = files.find("experiments", name)
        raise GridError(f"get_config() in {path} has to return a ConfigDict made by study_config(), not {config!r}.")
    return config


def enumerate_runs(
    scales: Sequence[tuple[Grid, ConfigDict]],
    *,
    overrides: dict[str, Any],
    seeds: int | None = None,
    only: str = "",
) -> Plan:
    """Resolves every point of every grid over its config, once for each seed, and drops repetitions.

    Args:
      scales: for each scale a grid and the scale's config.
      overrides: fields from the command line; they may not be ones that a grid varies.
      seeds: how many seeds of every point, counted from that of the config; as many as the grid says if None.
      only: a pattern such as "*-n32-*", of run names or ids; others are left out.

    Raises:
      SpecError: a field or value is not valid.
      GridError: an override touches what the grid varies, or `only` matches nothing.
    """
    cells = [cell for grid, config in scales for cell in _cells(grid, config, overrides, seeds)]
    figures: dict[str, Figure] = {}
    for figure in (figure for grid, _ in scales for figure in grid.figures):
        figures[figure.name] = join(figures[figure.name], figure) if figure.name in figures else figure
    runs: dict[str, tuple[RunSpec, Execution]] = {}
    reads: dict[str, set[str]] = {name: set() for name in figures}
    for index in range(max(cell.seeds for cell in cells)):
        for cell in (cell for cell in cells if index < cell.seeds):
            spec = dataclasses.replace(cell.spec, seed=cell.spec.seed + index)
            id_ = run_id(spec)
            if only and not (fnmatch.fnmatch(run_name(spec), only) or fnmatch.fnmatch(id_, only)):
                continue
            runs.setdefault(id_, (spec, cell.execution))
            for name in cell.figures:
                reads[name].add(id_)
    if not runs:
        raise GridError(f"--only {only!r} matches no run of the grid. Names look like {run_name(cells[-1].spec)}.")
    own = {grid.seeds for grid, _ in scales} | {grid.anchor_seeds for grid, _ in scales if grid.anchors}
    # How runs are executed selects none of them.
    asked = {name: value for name, value in overrides.items() if not name.startswith("execution.")}
    asked |= {"seeds": seeds} if seeds is not None and own != {seeds} else {}
    asked |= {"only": only} if only else {}
    return Plan(runs, figures, reads, asked)


@dataclass
class _Cell:
    """A point of a grid, resolved for its first seed; how many seeds it is to have, and what reads it."""

    spec: RunSpec
    execution: Execution
    seeds: int = 0
    figures: set[str] = field(default_factory=set)


def _cells(grid: Grid, config: ConfigDict, overrides: dict[str, Any], seeds: int | None) -> list[_Cell]:
    count = grid.seeds if seeds is None else seeds
    if count < 1:
        asker = "The grid's seeds =" if seeds is None else "--seeds"
        raise GridError(f"{asker} {count} cannot be used: ask for at least 1.")
    anchor_count = count if seeds is not None or not grid.anchors else grid.anchor_seeds
    points = [(point, "", count) for point in grid.points]
    points += [(point, figure.name, count) for figure in grid.figures for point in grid.read_by(figure)]
    points += [(point, "", anchor_count) for point in grid.anchors]
    if not points:
        raise GridError("The grid has no points at this scale: get_grid has to return at least one.")
    base = override(config, overrides, where="the command line")
    last = base.seed + max(count, anchor_count)
    require(last <= 2**32, "seed", base.seed, f"its {last - base.seed} seeds have to end below 2**32")
    _refuse_clash({name for point, _, _ in points for name in point}, overrides)
    resolved: dict[tuple, _Cell] = {}  # a point is resolved once, however many figures read it
    cells: dict[RunSpec, _Cell] = {}
    for point, figure, seeds_ in points:
        key = tuple(sorted((name, repr(value)) for name, value in point.items()))
        if key not in resolved:
            spec, execution = _resolve(base, point, overrides)
            resolved[key] = cells.setdefault(spec, _Cell(spec, execution))
        cell = resolved[key]
        cell.seeds = max(cell.seeds, seeds_)
        cell.figures |= {figure} if figure else set()
    # Stable: arms of one cell stay together, in the order of the grid.
    return sorted(cells.values(), key=lambda cell: (cell.spec.model.layer.sparsity, -cell.spec.model.layer.granularity))


def _refuse_clash(varied: set[str], overrides: dict[str, Any]) -> None:
    if "seed" in varied:
        raise GridError("The grid varies `seed`: leave that to its `seeds`, or to --seeds, so that cells have noise.")
    for field_ in sorted(varied & overrides.keys()):
        raise GridError(
            f"--config.{field_} cannot be set: the grid varies it. Use --only, --seeds or a grid of your own."
        )


def _resolve(base: Any, point: Point, overrides: dict[str, Any]) -> tuple[RunSpec, Execution]:
    try:
        return resolve(override(base, point, where="the grid"))
    except SpecError as error:
        if error.field in overrides:
            raise
        raise GridError(f"the grid's point {point} does not resolve: {error}") from error
