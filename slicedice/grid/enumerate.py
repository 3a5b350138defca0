"""From a grid, a scale and the command line's wishes to the runs to train, each once.

Seeds are outermost: every prefix of the list is a balanced design, so that a stopped sweep still plots.
"""

import fnmatch
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from slicedice import files
from slicedice.grid.grid import Grid, GridError
from slicedice.spec import Execution, RunSpec, SpecError, resolve, run_id, run_name
from slicedice.spec.config import override


@dataclass(frozen=True)
class Plan:
    """The runs of a grid by id, in training order, and how to execute each.

    asked: what was asked for beside the grid as its file has it: fields of the config, `seeds`, `only`.
    """

    grid: Grid
    runs: dict[str, tuple[RunSpec, Execution]]
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
    grid: Grid, config: ConfigDict, *, overrides: dict[str, Any], seeds: int | None = None, only: str = ""
) -> Plan:
    """Resolves every point of `grid` over `config`, once for each seed, and drops repetitions.

    Args:
      grid: points over the scale's config.
      config: the scale's config.
      overrides: fields from the command line; they may not be ones that the grid varies.
      seeds: how many seeds, counted from that of the config; the grid's own number if None.
      only: a pattern such as "*-n32-*", of run names or ids; others are left out.

    Raises:
      SpecError: a field or value is not valid.
      GridError: an override touches what the grid varies, or `only` matches nothing.
    """
    if not grid.points:
        raise GridError("The grid has no points at this scale: get_grid has to return at least one.")
    varied = {name for point in grid.points for name in point}
    if "seed" in varied:
        raise GridError("The grid varies `seed`: leave that to its `seeds`, or to --seeds, so that cells have noise.")
    clash = sorted(varied & overrides.keys())
    if clash:
        raise GridError(
            f"--config.{clash[0]} cannot be set: the grid varies it. Use --only, --seeds or a grid of your own."
        )
    base = override(config, overrides, where="the command line")
    count = grid.seeds if seeds is None else seeds
    if count < 1:
        asker = "The grid's seeds =" if seeds is None else "--seeds"
        raise GridError(f"{asker} {count} cannot be used: ask for at least 1.")
    runs: dict[str, tuple[RunSpec, Execution]] = {}
    for seed in range(base.seed, base.seed + count):
        for point in grid.points:
            try:
                spec, execution = resolve(override(base, {**point, "seed": seed}, where="the grid"))
            except SpecError as error:
                if error.field in overrides:
                    raise
                raise GridError(f"the grid's point {point} does not resolve: {error}") from error
            runs.setdefault(run_id(spec), (spec, execution))
    if only:
        runs = {
            id_: run
            for id_, run in runs.items()
            if fnmatch.fnmatch(run_name(run[0]), only) or fnmatch.fnmatch(id_, only)
        }
        if not runs:
            raise GridError(f"--only {only!r} matches no run of the grid. Names look like {_example(grid, base)}.")
    asked = dict(overrides)
    asked |= {"seeds": count} if count != grid.seeds else {}
    asked |= {"only": only} if only else {}
    return Plan(grid, runs, asked)


def _example(grid: Grid, base: ConfigDict) -> str:
    spec, _ = resolve(override(base, grid.points[-1], where="the grid"))
    return run_name(spec)
