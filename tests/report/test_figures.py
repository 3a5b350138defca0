"""Figures: the right points in the right panel, and something to look at whatever is done."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from scipy.stats import t

from slicedice.grid import Figure, Panel
from slicedice.report.figures import draw
from slicedice.report.results import Row

GRID = {(n, g): {"model.experts": f"n={n} g={g}"} for n in (4, 8, 16) for g in ("1/2", "1/4")}
FIGURE = Figure("both", "Count and granularity", (Panel("Over g", "g", "n"), Panel("Over n", "n", "g")))


@pytest.fixture
def panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Draws a figure; returns the panels as they were when it was done with."""
    drawings, close = [], plt.close
    monkeypatch.setattr(plt, "close", drawings.append)

    def make(rows: list[Row], figure: Figure = FIGURE) -> list[Axes]:
        draw(figure, rows, tmp_path / "figures")
        return drawings[-1].axes

    yield make
    for drawing in drawings:
        close(drawing)


@pytest.fixture
def grid_rows(rng: np.random.Generator, row_of) -> Callable[[int], list[Row]]:
    """Two granularities by three counts, each with seeds whose losses are random, in random order."""

    def make(seeds: int) -> list[Row]:
        points = [{**point, "seed": seed} for point in GRID.values() for seed in range(seeds)]
        rows = [row_of(point, loss=float(rng.normal(3, 0.1))) for point in points]
        return [rows[i] for i in rng.permutation(len(rows))]

    return make


def lines(ax: Axes) -> dict[str, tuple[Line2D, ErrorbarContainer]]:
    found = [c for c in ax.containers if isinstance(c, ErrorbarContainer)]
    return {str(c.get_label()): (c.lines[0], c) for c in found}


def points(line: Line2D) -> list[list[float]]:
    """A line's points, each at the tick that it was shifted from: by the same part of an octave, and a small one."""
    assert line.axes is not None
    x, y = np.asarray(line.get_xydata()).T
    shifts = np.log2(x[:, None]) - np.log2(np.asarray(line.axes.get_xticks()))
    nearest = np.argmin(np.abs(shifts), axis=1)
    shift = shifts[range(len(x)), nearest]
    assert np.ptp(shift) < 1e-9
    assert abs(shift[0]) <= 0.2
    x = np.asarray(line.axes.get_xticks())[nearest] if abs(shift[0]) > 1e-9 else x
    return np.stack([x, y], axis=1).tolist()


def mean(rows: list[Row], n: int, g: float) -> float:
    return float(np.mean([row["loss"] for row in rows if (row["n"], row["g"]) == (n, g)]))


@pytest.mark.parametrize("seeds", [1, 3])
def test_each_line_has_the_means_of_its_hue_from_left_to_right(panels, grid_rows, seeds: int):
    rows = grid_rows(seeds)
    over_g, over_n = panels(rows)
    assert list(lines(over_g)) == ["n = 4", "n = 8", "n = 16"]
    for n in (4, 8, 16):
        expected = [[g, mean(rows, n, g)] for g in (0.25, 0.5)]
        assert np.allclose(points(lines(over_g)[f"n = {n}"][0]), expected, rtol=1e-12)
    assert list(lines(over_n)) == ["g = 1/4", "g = 1/2"]
    for g, label in ((0.25, "g = 1/4"), (0.5, "g = 1/2")):
        expected = [[n, mean(rows, n, g)] for n in (4, 8, 16)]
        assert np.allclose(points(lines(over_n)[label][0]), expected, rtol=1e-12)


def test_bars_are_95_percent_of_the_pooled_noise(panels, grid_rows):
    rows = grid_rows(2)
    residuals = np.array([row["loss"] - mean(rows, row["n"], row["g"]) for row in rows])
    seeds = np.array([row["seed"] for row in rows])
    for seed in (0, 1):
        residuals[seeds == seed] -= residuals[seeds == seed].mean()
    # Two seeds in each of six cells: five degrees of freedom without the seeds', and two runs behind each mean.
    half = t.ppf(0.975, 5) * np.sqrt(np.sum(np.square(residuals)) / 5 / 2)
    for line, container in lines(panels(rows)[1]).values():
        xy, segments = np.asarray(line.get_xydata()), np.asarray(container.lines[2][0].get_segments())
        assert np.array_equal(segments[:, :, 0], np.repeat(xy[:, :1], 2, axis=1))
        assert np.allclose(segments[:, :, 1], xy[:, 1:] + [-half, half], rtol=1e-9)


def test_one_seed_has_no_bars(panels, grid_rows):
    assert all(not container.has_yerr for _, container in lines(panels(grid_rows(1))[0]).values())


def test_runs_that_are_not_done_are_gaps(panels, grid_rows, row_of):
    rows = [row for row in grid_rows(1) if (row["n"], row["g"]) != (8, 0.5) and row["n"] != 16]
    rows.append(row_of(GRID[8, "1/2"], state="crashed"))
    rows += [row_of(GRID[16, g], state="missing") for g in ("1/2", "1/4")]
    over_g, over_n = panels(rows)
    drawn = {label: points(line) for label, (line, _) in lines(over_g).items()}
    assert list(drawn) == ["n = 4", "n = 8"]
    assert drawn["n = 4"] == [[0.25, mean(rows, 4, 0.25)], [0.5, mean(rows, 4, 0.5)]]
    assert np.array_equal(drawn["n = 8"], [[0.25, mean(rows, 8, 0.25)], [0.5, np.nan]], equal_nan=True)
    # A missing cell between two that are done breaks their line: it was not measured that all is straight there.
    crashed = [row for row in rows if (row["n"], row["g"]) != (8, 0.25)]
    crashed += [row_of(GRID[8, "1/4"], state="running"), row_of({"model.experts": "n=8 k=1 g=1"}, loss=2.0)]
    crashed.append(row_of({"model.experts": "n=8 k=8 g=1/8"}, loss=4.0))
    line, _ = lines(panels(crashed)[0])["n = 8"]
    assert np.array_equal(points(line), [[0.125, 4], [0.25, np.nan], [0.5, np.nan], [1, 2]], equal_nan=True)
    # The axis shows the whole plan, so that a figure does not change its shape while runs come in.
    assert [label.get_text() for label in over_n.get_xticklabels()] == ["4", "8", "16"]
    assert list(over_n.get_xticks()) == [4, 8, 16]


def test_a_line_keeps_its_colour_while_others_come_in(panels, grid_rows, row_of):
    rows = grid_rows(1)
    colours = {label: line.get_color() for label, (line, _) in lines(panels(rows)[0]).items()}
    assert len(set(colours.values())) == 3
    partly = [row if row["n"] == 16 else {**row, "state": "missing", "loss": None} for row in rows]
    assert lines(panels(partly)[0])["n = 16"][0].get_color() == colours["n = 16"]


def test_a_diverged_run_is_an_open_marker_at_the_upper_edge(panels, grid_rows, row_of):
    rows = [row for row in grid_rows(1) if (row["n"], row["g"]) != (8, 0.5)]
    rows.append(row_of(GRID[8, "1/2"], state="diverged"))
    over_g, over_n = panels(rows)
    for ax, label, x in ((over_g, "n = 8", 0.5), (over_n, "g = 1/2", 8)):
        line, _ = lines(ax)[label]
        (marker,) = [other for other in ax.lines if other.get_fillstyle() == "none"]
        assert np.asarray(marker.get_xdata()).tolist() == [x]
        assert (marker.get_color(), marker.get_marker()) == (line.get_color(), line.get_marker())
        at = marker.get_transform().transform(np.asarray(marker.get_xydata()))
        height = ax.transAxes.inverted().transform(at)[0, 1]
        assert 0.9 < height <= 1


def test_the_dense_model_is_a_line_across_with_what_is_within_noise_of_it(panels, grid_rows, row_of, rng):
    dense = rng.normal(3, 0.1, 2).tolist()
    rows = grid_rows(1) + [row_of({"seed": i}, loss=loss) for i, loss in enumerate(dense)]
    rows.append(row_of({"model.experts": "n=4 g=1"}, loss=3.0))
    # The noise is that of the one cell with two seeds. In the band lies what does not differ from dense by more than
    # seeds make two cells differ that have as few of them as any in the panel.
    half = t.ppf(0.975, 1) * np.std(dense, ddof=1) * np.sqrt(2)
    for ax in panels(rows):
        (line,) = [line for line in ax.lines if line.get_label() == "dense"]
        assert np.asarray(line.get_ydata()).tolist() == [np.mean(dense)] * 2
        assert np.asarray(line.get_xdata()).tolist() == [0, 1]
        (band,) = ax.patches
        assert isinstance(band, Rectangle)
        assert np.allclose([band.get_y(), band.get_y() + band.get_height()], np.mean(dense) + np.array([-half, half]))
    # The dense model is no point of a line, not even of one that shares its granularity.
    over_g, over_n = panels(rows)
    assert points(lines(over_n)["g = 1"][0]) == [[4, 3.0]]
    assert "n = 1" not in lines(over_g)


@pytest.mark.parametrize("done", ["only dense", "nothing", "only diverged"])
def test_there_is_something_to_look_at_however_little_is_done(panels, row_of, done: str):
    rows = [row_of(point, state="diverged" if done == "only diverged" else "missing") for point in GRID.values()]
    rows.append(row_of({}, loss=3.0) if done == "only dense" else row_of({}, state="running"))
    for ax in panels(rows):
        assert lines(ax) == {}
        labels = ax.get_legend_handles_labels()[1]
        assert labels == (["dense"] if done == "only dense" else [])
        open_markers = [line for line in ax.lines if line.get_fillstyle() == "none"]
        assert len(open_markers) == (len(GRID) if done == "only diverged" else 0)


def test_a_grid_of_the_dense_model_alone_is_drawn(panels, row_of):
    for ax in panels([row_of({"seed": seed}, loss=3.0 + seed) for seed in range(2)]):
        assert [line.get_label() for line in ax.lines] == ["dense"]
        assert np.asarray(ax.lines[0].get_ydata()).tolist() == [3.5, 3.5]


def test_ticks_and_legends_write_granularities_as_fractions(panels, row_of):
    # With a generalist, granularities are not only 1/k.
    experts = [f"n=8 k={k} g={g}" for k, g in ((3, "1/4"), (6, "1/8"), (1, "3/4"), (2, "3/8"))]
    rows = [row_of({"model.generalist": "1/4", "model.experts": text}, loss=3.0) for text in experts]
    over_g, over_n = panels(rows)
    assert [label.get_text() for label in over_g.get_xticklabels()] == ["1/8", "1/4", "3/8", "3/4"]
    assert list(lines(over_n)) == ["g = 1/8", "g = 1/4", "g = 3/8", "g = 3/4"]


def test_lines_are_told_apart_at_the_studys_widest_grid(panels, row_of):
    # Counts up to 4096, as granularity_vs_count has at the study's scales.
    counts = [2**i for i in range(1, 13)]
    rows = [row_of({"model.experts": f"n={n} k=2 g=1/2"}, loss=3.0 + n) for n in counts]
    drawn = [line for line, _ in lines(panels(rows)[0]).values()]
    styles = {(to_hex(line.get_color()), line.get_marker(), str(line.get_linestyle())) for line in drawn}
    assert len(drawn) == len(counts)
    assert len(styles) == len(counts)


def test_panels_share_the_loss_and_say_what_they_show(panels, grid_rows):
    over_g, over_n = panels(grid_rows(1))
    assert over_g.get_ylim() == over_n.get_ylim()
    assert (over_g.get_xlabel(), over_n.get_xlabel()) == ("granularity g", "experts n")
    assert (over_g.get_title("left"), over_n.get_title("left")) == ("Over g", "Over n")
    assert "nats" in over_g.get_ylabel()
    assert (over_g.get_xscale(), over_n.get_xscale()) == ("log", "log")
    assert "Count and granularity" in str(over_g.get_figure().get_suptitle())
    assert "tiny" in str(over_g.get_figure().get_suptitle())


def test_another_column_can_be_drawn(panels, grid_rows):
    rows = grid_rows(1)
    figure = Figure("train", "Train", FIGURE.panels, y="train_loss")
    for n, (line, _) in zip((4, 8, 16), lines(panels(rows, figure)[0]).values(), strict=True):
        assert np.allclose(line.get_ydata(), [mean(rows, n, g) - 0.5 for g in (0.25, 0.5)])


def test_files_are_whole_and_the_same_every_time(tmp_path: Path, grid_rows, row_of):
    rows = [*grid_rows(2), row_of({}, loss=3.0)]
    open_before = plt.get_fignums()
    files = draw(FIGURE, rows, tmp_path / "deep" / "folder")
    assert [file.relative_to(tmp_path / "deep" / "folder").name for file in files] == ["both.png", "both.svg"]
    png, svg = (file.read_bytes() for file in files)
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert png.endswith(b"IEND\xaeB`\x82")
    assert {"Over g", "Over n", "dense"} <= set(ET.fromstring(svg).itertext())
    assert [file.read_bytes() for file in draw(FIGURE, rows, tmp_path / "again")] == [png, svg]
    assert plt.get_fignums() == open_before


def test_an_axis_of_settings_joins_them_and_dense_too(panels, row_of):
    rates = [0.5, 0.25, 0.125]
    panel = Figure("rates", "Rates", (Panel("Over rates", x="learning_rate", hue="n"),))
    points_ = [
        {"optimizer.learning_rate": rate, **layer} for rate in rates for layer in ({}, {"model.experts": "n=4 g=1/2"})
    ]
    rows = [
        row_of(point, loss=3.0 + i, settings=f"learning_rate={point['optimizer.learning_rate']} other=1")
        for i, point in enumerate(points_)
    ]
    drawn = lines(panels(rows, panel)[0])
    assert set(drawn) == {"dense other=1", "n = 4 other=1"}
    assert points(drawn["dense other=1"][0]) == [[0.125, 7.0], [0.25, 5.0], [0.5, 3.0]]
    assert points(drawn["n = 4 other=1"][0]) == [[0.125, 8.0], [0.25, 6.0], [0.5, 4.0]]


def test_a_hue_of_settings_leaves_dense_a_line_across_for_each(panels, row_of):
    panel = Figure("rates", "Rates", (Panel("Over g", x="g", hue="learning_rate"),))
    rows = [
        row_of({"optimizer.learning_rate": rate, **layer}, loss=3.0 + rate, settings=f"learning_rate={rate}")
        for rate in (0.5, 0.25)
        for layer in ({}, {"model.experts": "n=4 g=1/2"}, {"model.experts": "n=8 g=1/4"})
    ]
    (ax,) = panels(rows, panel)
    across = {str(line.get_label()): list(line.get_ydata()) for line in ax.lines if "dense" in str(line.get_label())}
    assert across == {"dense learning_rate=0.25": [3.25] * 2, "dense learning_rate=0.5": [3.5] * 2}
    assert {label: len(points(line)) for label, (line, _) in lines(ax).items()} == {
        "rate = 0.25": 2,
        "rate = 0.5": 2,
    }
