"""Facets, styles and bands: what a figure of several scales or settings adds to a plain one."""

import itertools
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.patches import Rectangle
from scipy.stats import t

from slicedice.grid import Figure, Panel
from slicedice.report.results import Row
from tests.report.drawn import BIG, DEFAULT, LAYERS, OVER_N, lines, places

LONG = {"budget.tokens": 12 * 8 * 16}


def losses(ax: Axes) -> set[float]:
    """All that lines of a panel show, the dense one too."""
    shown = {*lines(ax).values(), *(line for line in ax.lines if str(line.get_label()).startswith("dense"))}
    return {float(y) for line in shown for y in np.asarray(line.get_ydata()) if not np.isnan(y)}


def of(rows: list[Row], **where: Any) -> set[float]:
    return {row["loss"] for row in rows if all(row[name] == value for name, value in where.items())}


def test_each_panel_of_a_faceted_figure_has_the_rows_of_its_facets(draw_all, done_rows, rng):
    points = [{**scale, **router, **layer} for scale in ({}, BIG) for router in ({}, DEFAULT) for layer in LAYERS]
    rows = done_rows(*points, {}, BIG)
    axes, _ = draw_all([rows[i] for i in rng.permutation(len(rows))], Figure("f", "F", (OVER_N,), columns="router"))
    assert [len(row) for row in axes] == [2, 2]
    order = list(dict.fromkeys(str(ax.get_title("left")).split(" · ")[1] for row in axes for ax in row))
    for row, scale in zip(axes, order, strict=True):
        for ax, router in zip(row, ("default", "dropless"), strict=True):
            assert ax.get_title("left") == f"{router} · {scale}"
            # The dense model has no router: it is in both panels of its scale.
            assert losses(ax) == of(rows, scale=scale, router=router) | of(rows, scale=scale, dense=True)
            # What facets show, labels need not.
            assert set(lines(ax)) == {"g = 1/2", "g = 1/4"}


@pytest.mark.parametrize("scales", [({}, BIG), (BIG, {})])
def test_scales_are_in_the_plans_order_and_numbers_in_their_own(draw_all, done_rows, rng, scales):
    rows = done_rows(*({**scale, **LAYERS[i]} for scale in scales for i in rng.permutation(4)))
    axes, _ = draw_all(rows, Figure("f", "F", (Panel("", "s", "n"),), columns="g"))
    names = [scale.get("scale", "tiny") for scale in scales]
    want = [[f"g = {g} · {name}" for g in ("1/4", "1/2")] for name in names]
    assert [[ax.get_title("left") for ax in row] for row in axes] == want
    assert axes[0][0].get_figure().get_suptitle() == f"F · {', '.join(names)}"
    # Losses of one scale are compared from panel to panel; those of two are not.
    assert axes[0][0].get_ylim() == axes[0][1].get_ylim() != axes[1][0].get_ylim()


@pytest.mark.parametrize("scales", [({},), ({}, BIG), (BIG, {}, {"scale": "wide", "model.d_model": 48})])
def test_scales_from_left_to_right_are_one_row(draw_all, done_rows, scales):
    points = [{**scale, **layer} for scale in scales for layer in (*LAYERS, {})]
    rows = done_rows(*points)
    axes, _ = draw_all(rows, Figure("f", "F", (OVER_N,), columns="scale"))
    names = [scale.get("scale", "tiny") for scale in scales]
    assert [[ax.get_title("left") for ax in row] for row in axes] == [names]
    for ax, scale in zip(axes[0], names, strict=True):
        assert losses(ax) == of(rows, scale=scale)


def test_each_budget_has_a_dense_model_of_its_own(draw_all, done_rows):
    rows = done_rows(*({**budget, **layer} for budget in (LONG, {}) for layer in (*LAYERS, {})))
    ((short, long),), _ = draw_all(rows, Figure("f", "F", (OVER_N,), columns="tokens"))
    for ax, tokens in ((short, 6 * 8 * 16), (long, 12 * 8 * 16)):
        assert ax.get_title("left") == f"tokens = {tokens}"
        assert losses(ax) == of(rows, tokens=tokens)
        (dense,) = (line for line in ax.lines if line.get_label() == "dense")
        assert set(np.asarray(dense.get_ydata())) == of(rows, tokens=tokens, dense=True)


def test_panels_of_several_scales_are_one_row_each(draw_all, done_rows):
    rows = done_rows(*({**scale, **layer} for scale in ({}, BIG) for layer in LAYERS))
    axes, _ = draw_all(rows, Figure("f", "F", (Panel("Over n", "n", "g"), Panel("Over g", "g", "n"))))
    titles = [["Over n · tiny", "Over g · tiny"], ["Over n · big", "Over g · big"]]
    assert [[ax.get_title("left") for ax in row] for row in axes] == titles
    for row, scale in zip(axes, ("tiny", "big"), strict=True):
        assert losses(row[0]) == losses(row[1]) == of(rows, scale=scale)


def test_facets_of_which_some_have_no_runs(draw_all, done_rows):
    rows = done_rows({**LAYERS[0]}, {**BIG, **LAYERS[1]}, BIG)
    axes, _ = draw_all(rows, Figure("f", "F", (OVER_N,), columns="g"))
    found = [[len(lines(ax)) for ax in row] for row in axes]
    assert found == [[0, 1], [1, 0]]  # g = 1/4 and 1/2, at tiny and at big


GENERAL = {"model.experts": "n=6 k=2 g=1/4", "model.generalist": "1/2"}
STYLES = {
    "kind": [{"model.experts": "n=8 g=1/4"}, {"model.experts": "n=2 k=1 g=1/2 + n=4 k=2 g=1/4"}],
    "router": [LAYERS[0], {**LAYERS[0], **DEFAULT}],
    "wiring": [LAYERS[1], {**GENERAL, "model.wiring": "plain"}, {**GENERAL, "model.wiring": "parallel"}],
    "generalist": [LAYERS[1], {"model.experts": "n=7 k=3 g=1/4", "model.generalist": "1/4"}, GENERAL],
}


@pytest.mark.parametrize("style", STYLES)
def test_the_preferred_style_is_solid_and_the_others_are_not(draw_all, done_rows, style: str):
    rows = done_rows(*STYLES[style])
    for order in itertools.permutations(range(len(rows))):
        (((ax,),), _) = draw_all([rows[i] for i in order], Figure("f", "F", (Panel("", "g", "scale", style),)))
        by_loss = {float(np.asarray(line.get_ydata())[0]): line for line in lines(ax).values()}
        dashes = [str(by_loss[row["loss"]].get_linestyle()) for row in rows]
        assert dashes[0] == "-"
        assert len(set(dashes)) == len(rows)
        # They differ in their dashes alone.
        assert len({(line.get_color(), line.get_marker()) for line in by_loss.values()}) == 1


def test_a_style_looks_alike_in_every_panel(draw_all, done_rows):
    # Of the coarser experts one router alone is there, as in a selection by --only.
    rows = done_rows(LAYERS[1], {**LAYERS[1], **DEFAULT}, {**LAYERS[0], **DEFAULT})
    (((fine, coarse),), _) = draw_all(rows, Figure("f", "F", (Panel("", "s", "scale", "router"),), columns="g"))
    shown = {label: line for label, line in lines(fine).items() if "default" in label}
    ((label, line),) = shown.items()
    assert lines(coarse)[label].get_linestyle() == line.get_linestyle()


def test_lines_are_apart_where_they_have_bars_and_only_there(draw_all, done_rows, rng):
    counts = [4 * 2**i for i in range(int(rng.integers(2, 11)))]
    points = [{"model.experts": f"n={n} g={g}"} for n in counts for g in ("1/2", "1/4")]
    figure = Figure("f", "F", (Panel("", "g", "n"),))
    for seeds in (1, 2):
        (((ax,),), tips) = draw_all(done_rows(*points, seeds=seeds), figure)
        x = np.array([np.asarray(line.get_xydata())[:, 0] for line in lines(ax).values()])
        shifts = np.log2(x) - np.log2([0.25, 0.5])
        if seeds == 1:
            assert np.array_equal(x, np.broadcast_to([0.25, 0.5], x.shape))
            continue
        assert np.allclose(shifts[:, 0], shifts[:, 1], atol=1e-9), "a line is moved as a whole"
        assert (np.diff(shifts[:, 0]) > 0.02).all(), "in the order of the legend"
        assert np.allclose(shifts[:, 0].mean(), 0, atol=1e-9)
        assert np.ptp(shifts[:, 0]) < 0.5, "nearer to their tick than to the next"
        # Bars and what the pointer meets are where the marks are.
        for container, own in zip((c for c in ax.containers if isinstance(c, ErrorbarContainer)), x, strict=True):
            segments = np.asarray(container.lines[2][0].get_segments())
            assert np.array_equal(segments[:, :, 0], np.repeat(own[:, None], 2, axis=1))
        marks = np.concatenate([np.asarray(line.get_xydata()) for line in lines(ax).values()])
        assert sorted(np.round(places(ax, marks), 1).tolist()) == sorted([x, y] for x, y, _ in tips)


def half_band(ax: Axes) -> float:
    (band,) = ax.patches
    assert isinstance(band, Rectangle)
    (dense,) = (line for line in ax.lines if line.get_label() == "dense")
    assert band.get_y() + band.get_height() / 2 == pytest.approx(np.asarray(dense.get_ydata())[0], rel=1e-9)
    return band.get_height() / 2


def test_the_band_is_the_interval_of_a_difference_to_dense(draw_all, done_rows):
    three = done_rows({}, LAYERS[0], LAYERS[1], seeds=3)
    figure = Figure("f", "F", (OVER_N,), columns="g")
    residuals = np.array([[row["loss"] for row in three if row["seed"] == seed] for seed in range(3)])
    residuals = residuals - residuals.mean(axis=0) - residuals.mean(axis=1, keepdims=True) + residuals.mean()
    sigma, factor = np.sqrt(np.sum(residuals**2) / 4), t.ppf(0.975, 4)
    (((fine, coarse),), _) = draw_all(three, figure)
    for ax in (fine, coarse):
        assert half_band(ax) == pytest.approx(factor * sigma * np.sqrt(2 / 3), rel=1e-6)
    # A cell of one seed is further from dense by noise alone, and it widens the band of its own panel.
    (((fine, coarse),), _) = draw_all([*three, *done_rows(LAYERS[2])], figure)
    assert half_band(fine) == pytest.approx(factor * sigma * np.sqrt(2 / 3), rel=1e-6)
    assert half_band(coarse) == pytest.approx(factor * sigma * np.sqrt(2), rel=1e-6)


def test_noise_is_known_from_everything_there_is(draw_all, done_rows):
    rows = done_rows({}, *LAYERS[:2])
    elsewhere = done_rows(LAYERS[2], LAYERS[3], seeds=2)
    (((ax,),), _) = draw_all(rows, Figure("f", "F", (OVER_N,)))
    assert list(ax.patches) == []
    (((ax,),), _) = draw_all(rows, Figure("f", "F", (OVER_N,)), [*rows, *elsewhere])
    a, b = (np.array([row["loss"] for row in elsewhere if row["seed"] == seed]) for seed in (0, 1))
    half = t.ppf(0.975, 1) * abs((a - b)[0] - (a - b)[1]) / 2
    assert half_band(ax) == pytest.approx(half * np.sqrt(2), rel=1e-6)
    for container in (c for c in ax.containers if isinstance(c, ErrorbarContainer)):
        (segment,) = np.asarray(container.lines[2][0].get_segments())
        assert np.ptp(segment[:, 1]) == pytest.approx(2 * half, rel=1e-6)
    assert losses(ax) == of(rows), "and nothing else of it is drawn"


def test_two_scales_have_bands_of_their_own(draw_all, done_rows):
    rows = done_rows({}, LAYERS[0], BIG, {**BIG, **LAYERS[0]}, seeds=2)
    ((tiny, big),), _ = draw_all(rows, Figure("f", "F", (OVER_N,)))
    for ax, scale in ((tiny, "tiny"), (big, "big")):
        y = np.array([[row["loss"] for row in rows if (row["scale"], row["seed"]) == (scale, i)] for i in (0, 1)])
        sigma = abs(np.diff(np.diff(y, axis=0))[0, 0]) / 2
        assert half_band(ax) == pytest.approx(t.ppf(0.975, 1) * sigma, rel=1e-6)


def test_what_is_moved_from_a_single_tick_stays_by_it(draw_all, done_rows):
    rows = done_rows(*({"model.experts": f"n={n} g=1/4"} for n in (8, 16, 32)), seeds=2)
    (((ax,),), _) = draw_all(rows, Figure("f", "F", (Panel("", "g", "n"),)))
    x = [np.asarray(line.get_xydata())[0] for line in lines(ax).values()]
    place = ax.transAxes.inverted().transform(ax.transData.transform(np.asarray(x)))[:, 0]
    assert np.abs(place - 0.5).max() < 0.25
