"""Legends, hues and dashes: what tells the lines of a figure apart and names them."""

import itertools
from typing import Any

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure

from slicedice.grid import Figure, Panel, enumerate_runs, load_config, load_grid
from slicedice.report.results import read_results
from tests.report.drawn import BIG, DEFAULT, LAYERS, OVER_N, lines


def legends(ax: Axes) -> tuple[list[Any], list[Any]]:
    """Those of the whole drawing that `ax` is in, and those of its panels."""
    drawing = ax.get_figure()
    assert isinstance(drawing, MatplotlibFigure)
    drawing.draw_without_rendering()  # places all labels anew
    return drawing.legends, [own for other in drawing.axes if (own := other.get_legend()) is not None]


def words(legend) -> list[str]:
    return [text.get_text() for text in legend.get_texts()]


def test_a_faceted_figure_has_one_legend_of_what_any_facet_shows(draw_all, done_rows):
    low, high = LAYERS[:2]  # n = 8 of two granularities
    rows = done_rows({}, low, {"model.experts": "n=16 g=1/4"}, {**high, **DEFAULT})
    axes, _ = draw_all(rows, Figure("f", "F", (Panel("", "s", "n", "router"),), columns="g"))
    assert [sorted(lines(ax)) for ax in axes[0]] == [["n = 16 dropless", "n = 8 default"], ["n = 8 dropless"]]
    (legend,), none = legends(axes[0][0])
    assert none == []
    assert sorted(words(legend)) == ["dense", "n = 16 dropless", "n = 8 default", "n = 8 dropless"]
    below = min(ax.get_tightbbox().y0 for ax in axes[0])
    assert legend.get_window_extent().y1 <= below


def test_panels_have_legends_of_their_own_below_their_labels(draw_all, done_rows):
    # As many counts as the study has, so that ticks are turned and legends long.
    rows = done_rows({}, *({"model.experts": f"n={2**i} k=2 g=1/2"} for i in range(1, 13)), LAYERS[1], LAYERS[3])
    (panels,), _ = draw_all(rows, Figure("f", "F", (Panel("Over n", "n", "g"), Panel("Over g", "g", "n"))))
    none, own = legends(panels[0])
    assert none == []
    assert [set(words(legend)) for legend in own] == [{*lines(ax), "dense"} for ax in panels]
    for ax, legend in zip(panels, own, strict=True):
        box = legend.get_window_extent()
        assert box.y1 <= ax.get_window_extent().y0
        assert not box.overlaps(ax.xaxis.label.get_window_extent())
    assert not own[0].get_window_extent().overlaps(own[1].get_window_extent())


def test_legends_name_bands_and_diverged_runs_where_there_are_any(draw_all, done_rows):
    for columns, seeds, state in itertools.product(("", "g"), (1, 2), ("done", "diverged")):
        rows = done_rows({}, *LAYERS, seeds=seeds)
        rows[-1] |= {"state": state}
        axes, _ = draw_all(rows, Figure("f", "F", (OVER_N,), columns=columns))
        (legend,), _ = legends(axes[0][0])
        assert ("within noise of dense" in words(legend)) is (seeds == 2)
        assert ("diverged" in words(legend)) is (state == "diverged")
        for ax in axes[0]:
            assert len(ax.patches) == seeds - 1


def test_a_colour_is_one_hue_in_every_facet(draw_all, done_rows):
    # Counts differ from granularity to granularity: a colour by place would be another hue in each.
    rows = done_rows(
        *({"model.experts": f"n={n} g={g}"} for n, g in ((8, "1/4"), (16, "1/4"), (16, "1/2"), (32, "1/2")))
    )
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


def test_legends_are_in_the_order_of_their_hues_over_all_panels(draw_all, done_rows, rng):
    # Of a hue that one panel alone has, and of granularities, whose texts sort otherwise than they do.
    sets = ["n=8 g=1/2", "n=128 k=16 g=1/16", "n=16 g=1/4", "n=4 k=1 g=1/2 + n=64 k=8 g=1/16", "n=2 k=1 g=1"]
    points = [{"model.experts": text} for text in sets] + [{**BIG, "model.experts": "n=32 g=1/4"}, {}, BIG]
    rows = done_rows(*points)
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


def test_hues_of_texts_are_in_the_order_of_their_numbers(draw_all, done_rows):
    alphas = [1e-5, 1e-4, 0.002, 0.5, 10.0]  # written as 1e-05, 0.0001, ..., of which none sorts as it does
    rows = done_rows(*({"model.experts": "n=8 g=1/2", "router.alpha": alpha} for alpha in reversed(alphas)))
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


def test_a_panel_in_which_nothing_is_done_says_so(draw_all, done_rows):
    rows = [{**row, "state": "missing", "loss": None} for row in done_rows(*LAYERS)]
    axes, _ = draw_all(rows, Figure("f", "F", (OVER_N, Panel("", "g", "n"))))
    _, own = legends(axes[0][0])
    assert [words(legend) for legend in own] == [["no run is done"]] * 2
