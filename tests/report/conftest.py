"""Runs as the store has them and rows as reports have them, without training anything."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes

from slicedice.grid import Figure, Plan
from slicedice.report.figures import draw
from slicedice.report.results import Row, read_results
from slicedice.spec import run_id
from slicedice.store import Kind, Store
from tests import endings
from tests.report.drawn import tips_in


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store").create()


@pytest.fixture
def plan_of(tiny) -> Callable[..., Plan]:
    """A plan of tiny runs, one for each of the given overrides."""

    def make(*points: dict[str, Any], figures=(), asked: dict[str, Any] | None = None) -> Plan:
        runs = {run_id(run[0]): run for run in map(tiny, points)}
        assert len(runs) == len(points)
        drawn = {figure.name: figure for figure in figures}
        return Plan(runs, drawn, {name: set(runs) for name in drawn}, asked or {})

    return make


@pytest.fixture
def content() -> Callable[..., dict[str, Any]]:
    """What a worker writes as a result."""

    def make(losses: dict[str, float] | None = None, *, fingerprint: str = "f" * 12, **more: Any) -> dict[str, Any]:
        scores = {name: {"nats": x, "bits_per_byte": 2 * x, "targets": 64} for name, x in (losses or {}).items()}
        provenance = {"data_fingerprint": fingerprint, "device": "a device", "git_revision": "abc", "finished": "now"}
        return {
            "steps": 6,
            "train": {"cross_entropy": 2.5, "load_imbalance": 1.25, "dropped_share": 0.0, "dead_experts": 1},
            "evaluation": {"held_out": scores} if scores else {},
            "seconds_per_step": 0.5,
            "provenance": provenance,
            **more,
        }

    return make


@pytest.fixture
def finish(store: Store, content) -> Callable[..., str]:
    """Ends a run of a plan with a result; returns its id."""

    def end(plan: Plan, index: int, losses: dict[str, float] | None = None, kind: Kind = Kind.DONE, **more: Any) -> str:
        id_ = list(plan.runs)[index]
        folder = store.run(id_)
        folder.create(*plan.runs[id_])
        endings.finish(folder, kind, content(losses, **more))
        return id_

    return end


@pytest.fixture
def row_of(store: Store, plan_of) -> Callable[..., Row]:
    """A row of a tiny run, as it is read before it begins, with a state, a loss and other columns put in."""

    def make(overrides: dict[str, Any] | None = None, *, state: str = "done", loss: float | None = None, **more) -> Row:
        (row,) = read_results(plan_of(overrides or {}), store).rows
        row |= {"state": state, "steps": 6, "reason": None if state == "done" else f"why it {state}"}
        if loss is not None:
            row |= {"loss": loss, "train_loss": loss - 0.5, "data_fingerprint": "f" * 12, "device": "a device"}
            row |= {"git_revision": "abc", "bits_per_byte": 2 * loss}
        return {**row, **more}

    return make


@pytest.fixture
def done_rows(rng: np.random.Generator, store, plan_of) -> Callable[..., list[Row]]:
    """Rows of one plan, whose settings are those that vary over it, done and with random losses."""

    def make(*points: dict[str, Any], seeds: int = 1) -> list[Row]:
        plan = plan_of(*({**point, "seed": seed} for seed in range(seeds) for point in points))
        rows = read_results(plan, store).rows
        return [{**row, "state": "done", "steps": 6, "loss": float(rng.normal(3, 0.1))} for row in rows]

    return make


@pytest.fixture
def draw_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Draws a figure; returns its panels by line and column, and where points are drawn with what they say."""
    drawings, close = [], plt.close
    monkeypatch.setattr(plt, "close", drawings.append)

    def make(rows: list[Row], figure: Figure, everything: list[Row] | None = None):
        _, svg = draw(figure, rows, tmp_path / "figures", everything)
        axes: dict[int, list[Axes]] = {}
        for ax in drawings[-1].axes:
            axes.setdefault(ax.get_subplotspec().rowspan.start, []).append(ax)
        return list(axes.values()), tips_in(svg)

    yield make
    for drawing in drawings:
        close(drawing)
