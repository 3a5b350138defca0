"""Tips: every point of a figure says what it is where the pointer meets it."""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from slicedice.grid import Figure, Panel
from slicedice.report.captions import tip
from slicedice.report.figures import draw
from slicedice.report.statistics import cells, dense_beside
from tests.report.drawn import BIG, DEFAULT, LAYERS, OVER_N, SVG, places, tips_in


def test_the_pointer_meets_the_marks_that_are_drawn(tmp_path: Path, done_rows):
    points = [{**scale, **layer} for scale in ({}, BIG) for layer in LAYERS]
    _, svg = draw(Figure("f", "F", (OVER_N, Panel("Q", "g", "n"))), done_rows(*points, {}, BIG, seeds=2), tmp_path)
    drawing = ET.fromstring(svg.read_text(encoding="utf-8"))
    marks = np.array([[float(mark.get(name) or "nan") for name in "xy"] for mark in drawing.iter(f"{SVG}use")])
    tips = tips_in(svg)
    assert len(tips) == 2 * 2 * len(LAYERS)
    for x, y, _ in tips:
        assert np.abs(marks - [x, y]).max(axis=1).min() < 0.06
    assert len({(x, y) for x, y, _ in tips}) == len(tips)


def test_every_point_says_what_it_is_when_pointed_at(draw_all, done_rows):
    arms = [{}, DEFAULT, {"router.alpha": 0.5}]
    rows = done_rows({}, *({**layer, **arm} for layer in LAYERS for arm in arms), seeds=2)
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


def test_tips_are_of_the_figures_own_measure(draw_all, done_rows):
    rows = [{**row, "load_imbalance": 1 + i / 8} for i, row in enumerate(done_rows({}, LAYERS[0]))]
    _, tips = draw_all(rows, Figure("f", "F", (OVER_N,), y="load_imbalance"))
    ((*_, text),) = tips
    assert "load imbalance (max / mean): 1.1250, 1 seed" in text
    assert "against dense: +0.1699 octaves" in text  # log2 of 1.125


def test_a_tip_of_any_text_is_still_xml_that_the_pointer_meets(tmp_path: Path, done_rows):
    settings = "source=a<b>&c\"'/ä alpha=0.5"
    rows = [{**row, "settings": settings} for row in done_rows(LAYERS[0])]
    _, svg = draw(Figure("f", "F", (OVER_N,)), rows, tmp_path)
    ((*_, text),) = tips_in(svg)
    assert text.splitlines()[-1] == settings
    (element,) = (e for e in ET.fromstring(svg.read_text(encoding="utf-8")).iter() if e.get("class") == "point")
    assert element[0].tag == f"{SVG}title", "browsers show the first child"
    # It is met though it is not seen: what is not filled at all would not be.
    assert element.get("fill", "black") != "none"
