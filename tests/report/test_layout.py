"""What a drawing has room for: nothing is cut off or lies over something else, whatever the grid, scale or numbers."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure as Drawing
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from slicedice.grid import Figure, Panel, enumerate_runs, load_config, load_grid
from slicedice.grid.study import SCALES
from slicedice.report.figures import draw
from slicedice.report.layout import MANY, broken
from slicedice.report.results import Row, read_results

GRIDS = {
    "learning_rate": (SCALES, "learning_rate"),
    "generalist": (SCALES, "figure_21"),
    "generalist at one scale": (("80m",), "figure_5"),
    "generalist at two": (("80m", "110m"), "figure_5"),
    "heterogeneous": (("50m", "200m"), "figure_4"),
    "granularity_vs_count": (("10m",), "figure_12"),
    "dropless": (("nano",), "figure_23_without_capacity"),
    "load_balancing": (("nano",), "figure_10"),
    "compute_threshold": (("nano",), "figure_16"),
    "reweighting": (("smoke", "nano"), "reweighting"),
}
"""Some figures of the study, by grid: wide, tall, broken into lines, with long titles, or with long legends."""


@pytest.fixture
def drawing_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Draws a figure; returns the drawing, with all that it shows in its place."""
    drawings, close = [], plt.close
    monkeypatch.setattr(plt, "close", drawings.append)

    def make(figure: Figure, rows: list[Row]) -> Drawing:
        draw(figure, rows, tmp_path)
        drawings[-1].draw_without_rendering()
        return drawings[-1]

    yield make
    for drawing in drawings:
        close(drawing)


@pytest.fixture
def study(store, rng: np.random.Generator) -> Callable[[str], tuple[Figure, list[Row]]]:
    """A figure of the study, and its rows with losses of some size."""

    def make(name: str) -> tuple[Figure, list[Row]]:
        scales, figure = GRIDS[name]
        grid = name.split()[0]
        plan = enumerate_runs([(load_grid(grid, scale), load_config(scale)) for scale in scales], overrides={})
        spread, measure = 10 ** rng.uniform(-2.5, 1.5), plan.figures[figure].y
        rows = [row for row in read_results(plan, store).rows if row["id"] in plan.reads[figure]]
        losses = np.abs(rng.normal(3, spread, len(rows))).tolist()
        return plan.figures[figure], [
            {**row, "state": "done", measure: loss} for row, loss in zip(rows, losses, strict=True)
        ]

    return make


def texts(drawing: Drawing) -> list[tuple[Text, Bbox]]:
    """What is written, and where: heading, titles, labels, ticks within view, and legends."""
    found = [drawing._suptitle] if drawing._suptitle else []  # type: ignore[attr-defined]
    for ax in drawing.axes:
        found += [ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label]  # type: ignore[attr-defined]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    for legend in [*drawing.legends, *filter(None, (ax.get_legend() for ax in drawing.axes))]:
        found += legend.get_texts()
    return [(text, text.get_window_extent()) for text in found if text.get_text() and text.get_visible()]


@pytest.mark.parametrize("name", GRIDS)
def test_nothing_is_cut_off_and_nothing_written_lies_over_another(drawing_of, study, name: str):
    drawing = drawing_of(*study(name))
    written = texts(drawing)
    assert len(written) > 10
    width, height = drawing.get_size_inches() * drawing.get_dpi()
    for text, box in written:
        inside = (box.x0 > -1, box.y0 > -1, box.x1 < width + 1, box.y1 < height + 1)
        assert all(inside), f"{text.get_text()!r} is cut off"
    for (one, box), (other, beside) in itertools.combinations(written, 2):
        turned = one.get_rotation() == other.get_rotation() == 45  # which have boxes larger than they are
        assert turned or not box.overlaps(beside), f"{one.get_text()!r} lies over {other.get_text()!r}"


@pytest.mark.parametrize("name", GRIDS)
def test_frames_are_of_one_size_and_all_else_is_outside_of_them(drawing_of, study, name: str):
    drawing = drawing_of(*study(name))
    frames = [ax.get_window_extent() for ax in drawing.axes]
    sizes = np.array([(frame.width, frame.height) for frame in frames]) / drawing.get_dpi()
    assert np.allclose(sizes, sizes[0])
    assert sizes.min() > 2, "inches, or else ticks and marks run together"
    for text, box in texts(drawing):
        for frame in frames:
            assert not box.overlaps(Bbox.from_extents(frame.x0 + 2, frame.y0 + 2, frame.x1 - 2, frame.y1 - 2)), text
    assert not any(one.overlaps(other) for one, other in itertools.combinations(frames, 2))


def test_a_long_heading_and_long_labels_have_room(drawing_of, row_of, rng: np.random.Generator):
    words = " ".join("word" * int(rng.integers(1, 4)) for _ in range(30))
    points = [{"model.experts": f"n={n} g=1/4"} for n in (8, 16)]
    settings = "learning_rate=0.0004 weight_decay=0.12345 capacity_factor=1.2 source=/a/rather/long/path/to/texts"
    rows = [row_of(point, loss=3.0, settings=settings) for point in points]
    for panels in ((Panel("", "n", "g"),), (Panel(words[:60], "n", "g"), Panel("", "s", "g"))):
        drawing = drawing_of(Figure("f", words, panels), rows)
        width = drawing.get_size_inches()[0] * drawing.get_dpi()
        written = texts(drawing)
        assert all(box.x0 >= 0 and box.x1 <= width for _, box in written)
        assert not any(one.overlaps(other) for (_, one), (_, other) in itertools.combinations(written, 2))
        assert drawing.get_suptitle().replace("\n", " ") == f"{words} · tiny"


def test_ticks_are_turned_only_where_they_would_touch(drawing_of, row_of):
    def turned(counts: list[int]) -> set[float]:
        rows = [row_of({"model.experts": f"n={n} k=1 g=1"}, loss=3.0) for n in counts]
        drawing = drawing_of(Figure("f", "F", (Panel("", "n", "g"),)), rows)
        return {label.get_rotation() for label in drawing.axes[0].get_xticklabels()}

    assert turned([2, 4, 8, 16, 32, 64, 128, 256]) == {0}, "many, and short"
    assert turned([1024, 2048, 4096, 8192, 16384, 32768, 65536]) == {0}
    assert turned([10000, 10500, 65536]) == {45}, "few, and two are near each other"


@pytest.mark.parametrize("count", range(1, 15))
def test_lines_of_panels_are_short_and_as_equal_as_can_be(count: int):
    lines = broken(list(range(count)))
    assert list(itertools.chain(*lines)) == list(range(count))
    assert len({len(line) for line in lines[:-1]}) <= 1
    assert len(lines[-1]) <= len(lines[0]) <= MANY
    assert len(lines) == -(-count // MANY), "no more lines than it takes"


def titles(drawing: Drawing) -> list[list[str]]:
    lines: dict[int, list[str]] = {}
    for ax in drawing.axes:
        spec: Any = ax.get_subplotspec()
        lines.setdefault(spec.rowspan.start, []).append(ax.get_title("left"))
    return list(lines.values())


@pytest.mark.parametrize("name", ["learning_rate", "generalist"])
def test_seven_scales_are_two_lines_and_each_has_its_axis(drawing_of, study, name: str):
    drawing = drawing_of(*study(name))
    assert titles(drawing) == [list(SCALES[:4]), list(SCALES[4:])]
    # The label of x is where nothing is below; that of y at the beginning of each line.
    labelled = [bool(ax.get_xlabel()) for ax in drawing.axes]
    assert labelled == [False, False, False, True, True, True, True]
    assert [bool(ax.get_ylabel()) for ax in drawing.axes] == [True, False, False, False, True, False, False]
    # Each scale has its own losses, and so its own ticks.
    assert len({ax.get_ylim() for ax in drawing.axes}) == len(SCALES)
    assert all(any(label.get_visible() for label in ax.get_yticklabels()) for ax in drawing.axes)


def test_granularities_of_one_scale_share_an_axis_over_lines(drawing_of, study):
    drawing = drawing_of(*study("generalist at one scale"))
    assert titles(drawing) == [["g = 1/32", "g = 1/16", "g = 1/8"], ["g = 1/4", "g = 1/2"]]
    assert len({ax.get_ylim() for ax in drawing.axes}) == 1
    drawing = drawing_of(*study("generalist at two"))
    assert [len(line) for line in titles(drawing)] == [5, 5], "a line for each scale is not broken"
    assert len({ax.get_ylim() for ax in drawing.axes}) == 2


def test_rows_of_one_scale_are_side_by_side(drawing_of, study):
    figure, rows = study("load_balancing")
    assert (figure.rows, figure.columns) == ("g", "scale")
    drawing = drawing_of(figure, rows)
    assert titles(drawing) == [[f"nano · g = {g}" for g in ("1/16", "1/8", "1/4", "1/2")]]
    assert len({ax.get_ylim() for ax in drawing.axes}) == 1, "and compare with each other"
