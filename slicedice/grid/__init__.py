"""Grids: an algebra of overrides, the points it enumerates, and the figures that read them."""

from slicedice.grid.algebra import axis, chain, each, product, where, zip_
from slicedice.grid.departures import departures
from slicedice.grid.enumerate import Plan, enumerate_runs, load_config, load_grid
from slicedice.grid.figures import Figure, Panel
from slicedice.grid.grid import Grid, GridError, union

__all__ = [
    "Figure",
    "Grid",
    "GridError",
    "Panel",
    "Plan",
    "axis",
    "chain",
    "departures",
    "each",
    "enumerate_runs",
    "load_config",
    "load_grid",
    "product",
    "union",
    "where",
    "zip_",
]
