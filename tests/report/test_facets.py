"""Facets, styles, bands, tips and legends: what a figure of several scales or settings adds to a plain one."""

import itertools
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from scipy.stats import t

from slicedice.grid import Figure, Panel, enumerate_runs, load_config, load_grid
from slicedice.report.captions import tip
from slicedice.report.figures import draw
from slicedice.report.results import Row, read_results
from slicedice.report.statistics import cells, dense_beside

OVER_N = Panel("", "n", "g")
BIG = {"scale": "big", "model.d_model": 32}  # its name is before "tiny" in the alphabet
LAYERS = [{"model.experts": f"n={n} g={g}"} for n in (8, 16) for g in ("1/2", "1/4")]  # n > k: routers choose
DEFAULT = {"router.kind": "default"}
LONG = {"budget.tokens": 12 * 8 * 16}


@pytest.fixture
def rows_of(rng: np.random.Generator, store, plan_of) -> Callable[..., list[Row]]:
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


SVG = "{http://www.w3.org/2000/svg}"
Tip = tuple[float, float, str]


def tips_in(svg: Path) -> list[Tip]:
    found = []
    for element in ET.fromstring(svg.read_text(encoding="utf-8")).iter():
        if element.get("class") == "point":
            title = element.find(f"{SVG}title")
            assert title is not None
            found.append((float(element.get("cx") or "nan"), float(element.get("cy") or "nan"), str(title.text)))
    return found


def lines(ax: Axes) -> dict[str, Line2D]:
    return {str(c.get_label()): c.lines[0] for c in ax.containers if isinstance(c, ErrorbarContainer)}


def losses(ax: Axes) -> set[float]:
    """All that lines of a panel show, the dense one too."""
    shown = {*lines(ax).values(), *(line for line in ax.lines if str(line.get_label()).startswith("dense"))}
    return {float(y) for line in shown for y in np.asarray(line.get_ydata()) if not np.isnan(y)}


def of(rows: list[Row], **where: Any) -> set[float]:
    return {row["loss"] for row in rows if all(row[name] == value for name, value in where.items())}


def test_each_panel_of_a_faceted_figure_has_the_rows_of_its_facets(draw_all, rows_of, rng):
    points = [{**scale, **router, **layer} for scale in ({}, BIG) for router in ({}, DEFAULT) for layer in LAYERS]
    rows = rows_of(*points, {}, BIG)
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
def test_scales_are_in_the_plans_order_and_numbers_in_their_own(draw_all, rows_of, rng, scales):
    rows = rows_of(*({**scale, **LAYERS[i]} for scale in scales for i in rng.permutation(4)))
    axes, _ = draw_all(rows, Figure("f", "F", (Panel("", "s", "n"),), columns="g"))
    names = [scale.get("scale", "tiny") for scale in scales]
    want = [[f"g = {g} · {name}" for g in ("1/4", "1/2")] for name in names]
    assert [[ax.get_title("left") for ax in row] for row in axes] == want
    assert axes[0][0].get_figure().get_suptitle() == f"F · {', '.join(names)}"
    # Losses of one scale are compared from panel to panel; those of two are not.
    assert axes[0][0].get_ylim() == axes[0][1].get_ylim() != axes[1][0].get_ylim()


@pytest.mark.parametrize("scales", [({},), ({}, BIG), (BIG, {}, {"scale": "wide", "model.d_model": 48})])
def test_scales_from_left_to_right_are_one_row(draw_all, rows_of, scales):
    points = [{**scale, **layer} for scale in scales for layer in (*LAYERS, {})]
    rows = rows_of(*points)
    axes, _ = draw_all(rows, Figure("f", "F", (OVER_N,), columns="scale"))
    names = [scale.get("scale", "tiny") for scale in scales]
    assert [[ax.get_title("left") for ax in row] for row in axes] == [names]
    for ax, scale in zip(axes[0], names, strict=True):
        assert losses(ax) == of(rows, scale=scale)


def test_each_budget_has_a_dense_model_of_its_own(draw_all, rows_of):
    rows = rows_of(*({**budget, **layer} for budget in (LONG, {}) for layer in (*LAYERS, {})))
    ((short, long),), _ = draw_all(rows, Figure("f", "F", (OVER_N,), columns="tokens"))
    for ax, tokens in ((short, 6 * 8 * 16), (long, 12 * 8 * 16)):
        assert ax.get_title("left") == f"tokens = {tokens}"
        assert losses(ax) == of(rows, tokens=tokens)
        (dense,) = (line for line in ax.lines if line.get_label() == "dense")
        assert set(np.asarray(dense.get_ydata())) == of(rows, tokens=tokens, dense=True)


def test_panels_of_several_scales_are_one_row_each(draw_all, rows_of):
    rows = rows_of(*({**scale, **layer} for scale in ({}, BIG) for layer in LAYERS))
    axes, _ = draw_all(rows, Figure("f", "F", (Panel("Over n", "n", "g"), Panel("Over g", "g", "n"))))
    titles = [["Over n · tiny", "Over g · tiny"], ["Over n · big", "Over g · big"]]
    assert [[ax.get_title("left") for ax in row] for row in axes] == titles
    for row, scale in zip(axes, ("tiny", "big"), strict=True):
        assert losses(row[0]) == losses(row[1]) == of(rows, scale=scale)


def test_facets_of_which_some_have_no_runs(draw_all, rows_of):
    rows = rows_of({**LAYERS[0]}, {**BIG, **LAYERS[1]}, BIG)
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
def test_the_preferred_style_is_solid_and_the_others_are_not(draw_all, rows_of, style: str):
    rows = rows_of(*STYLES[style])
    for order in itertools.permutations(range(len(rows))):
        (((ax,),), _) = draw_all([rows[i] for i in order], Figure("f", "F", (Panel("", "g", "scale", style),)))
        by_loss = {float(np.asarray(line.get_ydata())[0]): line for line in lines(ax).values()}
        dashes = [str(by_loss[row["loss"]].get_linestyle()) for row in rows]
        assert dashes[0] == "-"
        assert len(set(dashes)) == len(rows)
        # They differ in their dashes alone.
        assert len({(line.get_color(), line.get_marker()) for line in by_loss.values()}) == 1


def test_a_style_looks_alike_in_every_panel(draw_all, rows_of):
    # Of the coarser experts one router alone is there, as in a selection by --only.
    rows = rows_of(LAYERS[1], {**LAYERS[1], **DEFAULT}, {**LAYERS[0], **DEFAULT})
    (((fine, coarse),), _) = draw_all(rows, Figure("f", "F", (Panel("", "s", "scale", "router"),), columns="g"))
    shown = {label: line for label, line in lines(fine).items() if "default" in label}
    ((label, line),) = shown.items()
    assert lines(coarse)[label].get_linestyle() == line.get_linestyle()


def test_lines_are_apart_where_they_have_bars_and_only_there(draw_all, rows_of, rng):
    counts = [4 * 2**i for i in range(int(rng.integers(2, 11)))]
    points = [{"model.experts": f"n={n} g={g}"} for n in counts for g in ("1/2", "1/4")]
    figure = Figure("f", "F", (Panel("", "g", "n"),))
    for seeds in (1, 2):
        (((ax,),), tips) = draw_all(rows_of(*points, seeds=seeds), figure)
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


def places(ax: Axes, points: np.ndarray) -> np.ndarray:
    """Where points of a panel [N, 2] lie in its drawing as SVG, which counts from above and in 1/72 inch."""
    drawing = ax.get_figure()
    assert isinstance(drawing, MatplotlibFigure)
    height = drawing.get_figheight()
    return (ax.transData.transform(points) / drawing.get_dpi() * [1, -1] + [0, height]) * 72


def test_the_pointer_meets_the_marks_that_are_drawn(tmp_path: Path, rows_of):
    points = [{**scale, **layer} for scale in ({}, BIG) for layer in LAYERS]
    _, svg = draw(Figure("f", "F", (OVER_N, Panel("Q", "g", "n"))), rows_of(*points, {}, BIG, seeds=2), tmp_path)
    drawing = ET.fromstring(svg.read_text(encoding="utf-8"))
    marks = np.array([[float(mark.get(name) or "nan") for name in "xy"] for mark in drawing.iter(f"{SVG}use")])
    tips = tips_in(svg)
    assert len(tips) == 2 * 2 * len(LAYERS)
    for x, y, _ in tips:
        assert np.abs(marks - [x, y]).max(axis=1).min() < 0.06
    assert len({(x, y) for x, y, _ in tips}) == len(tips)


def half_band(ax: Axes) -> float:
    (band,) = ax.patches
    assert isinstance(band, Rectangle)
    (dense,) = (line for line in ax.lines if line.get_label() == "dense")
    assert band.get_y() + band.get_height() / 2 == pytest.approx(np.asarray(dense.get_ydata())[0], rel=1e-9)
    return band.get_height() / 2


def test_the_band_is_the_interval_of_a_difference_to_dense(draw_all, rows_of):
    three = rows_of({}, LAYERS[0], LAYERS[1], seeds=3)
    figure = Figure("f", "F", (OVER_N,), columns="g")
    residuals = np.array([[row["loss"] for row in three if row["seed"] == seed] for seed in range(3)])
    residuals = residuals - residuals.mean(axis=0) - residuals.mean(axis=1, keepdims=True) + residuals.mean()
    sigma, factor = np.sqrt(np.sum(residuals**2) / 4), t.ppf(0.975, 4)
    (((fine, coarse),), _) = draw_all(three, figure)
    for ax in (fine, coarse):
        assert half_band(ax) == pytest.approx(factor * sigma * np.sqrt(2 / 3), rel=1e-6)
    # A cell of one seed is further from dense by noise alone, and it widens the band of its own panel.
    (((fine, coarse),), _) = draw_all([*three, *rows_of(LAYERS[2])], figure)
    assert half_band(fine) == pytest.approx(factor * sigma * np.sqrt(2 / 3), rel=1e-6)
    assert half_band(coarse) == pytest.approx(factor * sigma * np.sqrt(2), rel=1e-6)


def test_noise_is_known_from_everything_there_is(draw_all, rows_of):
    rows = rows_of({}, *LAYERS[:2])
    elsewhere = rows_of(LAYERS[2], LAYERS[3], seeds=2)
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


def test_two_scales_have_bands_of_their_own(draw_all, rows_of):
    rows = rows_of({}, LAYERS[0], BIG, {**BIG, **LAYERS[0]}, seeds=2)
    ((tiny, big),), _ = draw_all(rows, Figure("f", "F", (OVER_N,)))
    for ax, scale in ((tiny, "tiny"), (big, "big")):
        y = np.array([[row["loss"] for row in rows if (row["scale"], row["seed"]) == (scale, i)] for i in (0, 1)])
        sigma = abs(np.diff(np.diff(y, axis=0))[0, 0]) / 2
        assert half_band(ax) == pytest.approx(t.ppf(0.975, 1) * sigma, rel=1e-6)


def test_every_point_says_what_it_is_when_pointed_at(draw_all, rows_of):
    arms = [{}, DEFAULT, {"router.alpha": 0.5}]
    rows = rows_of({}, *({**layer, **arm} for layer in LAYERS for arm in arms), seeds=2)
    for row in rows:  # one cell has one seed less, and another is not done
        if (row["n"], row["g"]) == (16, 0.5) and (row["router"] == "default" or row["seed"] == 1):
            row |= {"state": "crashed" if row["router"] == "default" else "missing"}
    (axes,), tips = draw_all(rows, Figure("f", "F", (Panel("Over n", "n", "g", "router"), Panel("Over g", "g", "n"))))
    measured = cells(rows, "loss")
    moe = [cell for cell in measured if not cell.row["dense"]]
    assert len(moe) == 4 * 3 - 1
    said = [tip(cell, "loss", dense_beside(cell, measured)) for cell in moe]
    assert sorted(text for *_, text in tips) == sorted(said * 2)
    assert all("against dense: " in text for text in said)
    # It is said where the point is: at the height of its mean, beside its tick.
    for (x, y, text), (ax, axis) in zip(tips, [(axes[0], "n")] * len(moe) + [(axes[1], "g")] * len(moe), strict=True):
        cell = moe[said.index(text)]
        ((tick, height),) = places(ax, np.array([[cell.row[axis], cell.mean]]))
        octave = np.diff(places(ax, np.array([[1, 1], [2, 1]]))[:, 0])[0]
        assert y == pytest.approx(height, abs=0.06)
        assert abs(x - tick) < octave / 4


def test_tips_are_of_the_figures_own_measure(draw_all, rows_of):
    rows = [{**row, "load_imbalance": 1 + i / 8} for i, row in enumerate(rows_of({}, LAYERS[0]))]
    _, tips = draw_all(rows, Figure("f", "F", (OVER_N,), y="load_imbalance"))
    ((*_, text),) = tips
    assert "load imbalance (max / mean): 1.1250, 1 seed" in text
    assert "against dense: +0.1699 octaves" in text  # log2 of 1.125


def test_a_tip_of_any_text_is_still_xml_that_the_pointer_meets(tmp_path: Path, rows_of):
    settings = "source=a<b>&c\"'/ä alpha=0.5"
    rows = [{**row, "settings": settings} for row in rows_of(LAYERS[0])]
    _, svg = draw(Figure("f", "F", (OVER_N,)), rows, tmp_path)
    ((*_, text),) = tips_in(svg)
    assert text.splitlines()[-1] == settings
    (element,) = (e for e in ET.fromstring(svg.read_text(encoding="utf-8")).iter() if e.get("class") == "point")
    assert element[0].tag == f"{SVG}title", "browsers show the first child"
    # It is met though it is not seen: what is not filled at all would not be.
    assert element.get("fill", "black") != "none"


def legends(ax: Axes) -> tuple[list[Any], list[Any]]:
    """Those of the whole drawing that `ax` is in, and those of its panels."""
    drawing = ax.get_figure()
    assert isinstance(drawing, MatplotlibFigure)
    drawing.draw_without_rendering()  # places all labels anew
    return drawing.legends, [own for other in drawing.axes if (own := other.get_legend()) is not None]


def words(legend) -> list[str]:
    return [text.get_text() for text in legend.get_texts()]


def test_a_faceted_figure_has_one_legend_of_what_any_facet_shows(draw_all, rows_of):
    low, high = LAYERS[:2]  # n = 8 of two granularities
    rows = rows_of({}, low, {"model.experts": "n=16 g=1/4"}, {**high, **DEFAULT})
    axes, _ = draw_all(rows, Figure("f", "F", (Panel("", "s", "n", "router"),), columns="g"))
    assert [sorted(lines(ax)) for ax in axes[0]] == [["n = 16 dropless", "n = 8 default"], ["n = 8 dropless"]]
    (legend,), none = legends(axes[0][0])
    assert none == []
    assert sorted(words(legend)) == ["dense", "n = 16 dropless", "n = 8 default", "n = 8 dropless"]
    below = min(ax.get_tightbbox().y0 for ax in axes[0])
    assert legend.get_window_extent().y1 <= below


def test_panels_have_legends_of_their_own_below_their_labels(draw_all, rows_of):
    # As many counts as the study has, so that ticks are turned and legends long.
    rows = rows_of({}, *({"model.experts": f"n={2**i} k=2 g=1/2"} for i in range(1, 13)), LAYERS[1], LAYERS[3])
    (panels,), _ = draw_all(rows, Figure("f", "F", (Panel("Over n", "n", "g"), Panel("Over g", "g", "n"))))
    none, own = legends(panels[0])
    assert none == []
    assert [set(words(legend)) for legend in own] == [{*lines(ax), "dense"} for ax in panels]
    for ax, legend in zip(panels, own, strict=True):
        box = legend.get_window_extent()
        assert box.y1 <= ax.get_window_extent().y0
        assert not box.overlaps(ax.xaxis.label.get_window_extent())
    assert not own[0].get_window_extent().overlaps(own[1].get_window_extent())


def test_legends_name_bands_and_diverged_runs_where_there_are_any(draw_all, rows_of):
    for columns, seeds, state in itertools.product(("", "g"), (1, 2), ("done", "diverged")):
        rows = rows_of({}, *LAYERS, seeds=seeds)
        rows[-1] |= {"state": state}
        axes, _ = draw_all(rows, Figure("f", "F", (OVER_N,), columns=columns))
        (legend,), _ = legends(axes[0][0])
        assert ("within noise of dense" in words(legend)) is (seeds == 2)
        assert ("diverged" in words(legend)) is (state == "diverged")
        for ax in axes[0]:
            assert len(ax.patches) == seeds - 1


def test_a_colour_is_one_hue_in_every_facet(draw_all, rows_of):
    # Counts differ from granularity to granularity: a colour by place would be another hue in each.
    rows = rows_of(*({"model.experts": f"n={n} g={g}"} for n, g in ((8, "1/4"), (16, "1/4"), (16, "1/2"), (32, "1/2"))))
    (((fine, coarse),), _) = draw_all(rows, Figure("f", "F", (Panel("", "s", "n"),), columns="g"))
    look = [
        {label: (line.get_color(), line.get_marker()) for label, line in lines(ax).items()} for ax in (fine, coarse)
    ]
    assert look[0]["n = 16"] == look[1]["n = 16"]
    assert len({*look[0].values(), *look[1].values()}) == 3


@pytest.mark.parametrize("grid", ["heterogeneous", "dropless"])
def test_lines_of_the_studys_figures_are_told_apart(draw_all, store, rng, grid: str):
    plan = enumerate_runs([(load_grid(grid, "50m"), load_config("50m"))], overrides={})
    figure = next(iter(plan.figures.values()))
    rows = [row for row in read_results(plan, store).rows if row["id"] in plan.reads[figure.name]]
    axes, _ = draw_all([{**row, "state": "done", "loss": float(rng.normal(3, 0.1))} for row in rows], figure)
    for ax in axes[0]:
        look = {label: (x.get_color(), x.get_marker(), str(x.get_linestyle())) for label, x in lines(ax).items()}
        assert len(look) > 8
        assert len(set(look.values())) == len(look)
        # Dashes are what tells the styles apart, however many hues there are.
        preferred = {label: label.endswith((" homogeneous", " dropless")) for label in look}
        assert {label: dash == "-" for label, (_, _, dash) in look.items()} == preferred


def test_what_is_moved_from_a_single_tick_stays_by_it(draw_all, rows_of):
    rows = rows_of(*({"model.experts": f"n={n} g=1/4"} for n in (8, 16, 32)), seeds=2)
    (((ax,),), _) = draw_all(rows, Figure("f", "F", (Panel("", "g", "n"),)))
    x = [np.asarray(line.get_xydata())[0] for line in lines(ax).values()]
    place = ax.transAxes.inverted().transform(ax.transData.transform(np.asarray(x)))[:, 0]
    assert np.abs(place - 0.5).max() < 0.25


def test_legends_are_in_the_order_of_their_hues_over_all_panels(draw_all, rows_of, rng):
    # Of a hue that one panel alone has, and of granularities, whose texts sort otherwise than they do.
    sets = ["n=8 g=1/2", "n=128 k=16 g=1/16", "n=16 g=1/4", "n=4 k=1 g=1/2 + n=64 k=8 g=1/16", "n=2 k=1 g=1"]
    points = [{"model.experts": text} for text in sets] + [{**BIG, "model.experts": "n=32 g=1/4"}, {}, BIG]
    rows = rows_of(*points)
    figure = Figure("f", "F", (Panel("", "s", "n"), Panel("", "s", "granularity", "kind")))
    axes, _ = draw_all([rows[i] for i in rng.permutation(len(rows))], figure)
    _, own = legends(axes[0][0])
    counts, kinds = (words(legend) for legend in own)
    assert counts == ["dense", *(f"n = {n}" for n in (2, 8, 16, 32, 68, 128))]
    assert kinds == [
        "dense",
        "g = 1/16 homogeneous",
        "g = 1/4 homogeneous",
        "g = 1/2 homogeneous",
        "g = 1/2+1/16 heterogeneous",
        "g = 1 homogeneous",
    ]


def test_hues_of_texts_are_in_the_order_of_their_numbers(draw_all, rows_of):
    alphas = [1e-5, 1e-4, 0.002, 0.5, 10.0]  # written as 1e-05, 0.0001, ..., of which none sorts as it does
    rows = rows_of(*({"model.experts": "n=8 g=1/2", "router.alpha": alpha} for alpha in reversed(alphas)))
    axes, _ = draw_all(rows, Figure("f", "F", (Panel("", "s", "balancing"),)))
    (legend,), _ = legends(axes[0][0])
    assert words(legend) == [f"alpha {alpha:g}, gamma 0" for alpha in alphas]


def test_no_colour_repeats_in_the_studys_figures(draw_all, store, rng):
    for grid in ("heterogeneous", "granularity_vs_count"):
        plan = enumerate_runs([(load_grid(grid, "50m"), load_config("50m"))], overrides={})
        figure = next(iter(plan.figures.values()))
        rows = [row for row in read_results(plan, store).rows if row["id"] in plan.reads[figure.name]]
        axes, _ = draw_all([{**row, "state": "done", "loss": float(rng.normal(3, 0.1))} for row in rows], figure)
        for ax in axes[0]:
            shown = {label.rpartition(" ")[0] if "geneous" in label else label: x for label, x in lines(ax).items()}
            assert len(shown) > 6
            assert len({line.get_color() for line in shown.values()}) == len(shown)


def test_a_panel_in_which_nothing_is_done_says_so(draw_all, rows_of):
    rows = [{**row, "state": "missing", "loss": None} for row in rows_of(*LAYERS)]
    axes, _ = draw_all(rows, Figure("f", "F", (OVER_N, Panel("", "g", "n"))))
    _, own = legends(axes[0][0])
    assert [words(legend) for legend in own] == [["no run is done"]] * 2
