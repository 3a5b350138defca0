"""What figures and grids declare: joined where they are one, refused where they cannot be."""

import pytest

from slicedice.grid import Figure, Grid, GridError, Panel, axis, union
from slicedice.grid.figures import MEASURES
from slicedice.grid.grid import join
from slicedice.spec import SpecError

PANELS = (Panel("Over n", "n", "g"),)
A, B, C = axis("model.experts", ["dense", "n=4 k=2 g=1/2", "n=8 k=2 g=1/2"])


def test_a_union_trains_and_draws_what_any_of_its_grids_does():
    one = Grid(
        [A], (Figure("x", "X", PANELS, [B]), Figure("y", "Y", PANELS, [A])), seeds=2, anchors=[A], anchor_seeds=1
    )
    two = Grid([C], (Figure("x", "X", PANELS, [C, B]),), seeds=1, anchors=[C], anchor_seeds=4)
    both = union(one, two)
    assert both.points == [A, C]
    assert [(figure.name, figure.points) for figure in both.figures] == [("x", [B, C]), ("y", [A])]
    assert (both.seeds, both.anchors, both.anchor_seeds) == (2, [A, C], 4)
    assert union(one, one).figures == one.figures
    assert one.figures[0].points == [B], "grids are left alone"


def test_in_a_union_figures_go_on_reading_the_points_of_their_own_grid():
    one = Grid([A, B], (Figure("x", "X", PANELS), Figure("y", "Y", PANELS)))
    both = union(one, Grid([C], (Figure("y", "Y", PANELS),)))
    assert {figure.name: both.read_by(figure) for figure in both.figures} == {"x": [A, B], "y": [A, B, C]}


@pytest.mark.parametrize(
    "other",
    [
        Figure("x", "Another title", PANELS),
        Figure("x", "X", (Panel("Over n", "n", "s"),)),
        Figure("x", "X", PANELS, y="train_loss"),
        Figure("x", "X", PANELS, rows="router", columns="scale"),
        Figure("x", "X", PANELS, columns="router"),
    ],
    ids=["title", "panels", "y", "rows", "columns"],
)
def test_two_figures_of_one_name(other: Figure):
    figure = Figure("x", "X", PANELS, [A])
    for one, two in ((figure, other), (other, figure)):
        with pytest.raises(GridError, match="Two different figures are called 'x'"):
            join(one, two)
        with pytest.raises(GridError, match="Two different figures are called 'x'"):
            union(Grid([A], (one,)), Grid([A], (two,)))


@pytest.mark.parametrize("y", [*MEASURES, "loss_wikipedia", "bits_per_byte_c4", "accuracy_hellaswag"])
def test_what_can_be_measured_can_be_drawn(y: str):
    assert Figure("x", "X", PANELS, y=y).y == y


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (lambda: Panel("", "router", "n"), "Panel.x"),  # no numbers
        (lambda: Panel("", "sparsity", "n"), "Panel.x"),
        (lambda: Panel("", "n", ""), "Panel.hue"),
        (lambda: Panel("", "n", "seed"), "Panel.hue"),
        (lambda: Panel("", "n", "g", "seed"), "Panel.style"),
        (lambda: Figure("x", "X", ()), "Figure.panels"),
        (lambda: Figure("x", "X", PANELS, y="los"), "Figure.y"),
        (lambda: Figure("x", "X", PANELS, y="accuracy"), "Figure.y"),
        (lambda: Figure("x", "X", PANELS, rows=""), "Figure.rows"),
        (lambda: Figure("x", "X", PANELS, columns="seed"), "Figure.columns"),
        (lambda: Figure("x", "X", PANELS * 2, columns="g"), "Figure.columns"),
        (lambda: Figure("x", "X", PANELS, rows="g"), "Figure.rows"),  # losses of two scales in one panel
        (lambda: Figure("x", "X", PANELS, rows="g", columns="router"), "Figure.rows"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is_trained(bad, field: str):
    with pytest.raises(SpecError) as error:
        bad()
    assert error.value.field == field
