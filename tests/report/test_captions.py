"""What figures say in words: labels, values of coordinates, and what a point is."""

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from slicedice.grid.figures import GROUPS, MEASURES
from slicedice.report.captions import LABELS, describe, label, number, tip, with_tips
from slicedice.report.statistics import Cell, Noise, difference

MOE = {"model.experts": "n=8 k=4 g=1/4"}
GENERAL = {"model.experts": "n=6 k=2 g=1/4", "model.generalist": "1/2", "model.wiring": "plain"}


def test_every_measure_has_a_label_and_tells_its_unit():
    assert set(LABELS) == set(MEASURES)
    assert label("loss") == "held-out cross-entropy (nats)"
    assert label("loss_wikipedia") == "wikipedia: cross-entropy (nats)"
    assert label("bits_per_byte_c4") == "c4: bits per byte"
    assert label("accuracy_hellaswag") == "hellaswag accuracy"
    # What begins as the name of one set does is not taken for one.
    assert (label("bits_per_byte"), label("load_imbalance")) == (
        "held-out bits per byte",
        "load imbalance (max / mean)",
    )


def test_granularities_are_exact_fractions(rng: np.random.Generator):
    for k in rng.integers(1, 65, 5).tolist():
        assert number("g", 1 / k) == ("1" if k == 1 else f"1/{k}")
    assert number("generalist", 0.375) == "3/8"


def test_counts_are_short_and_near(rng: np.random.Generator):
    for value in np.exp(rng.uniform(math.log(1e6), math.log(9e11), 200)):
        text = number("tokens", float(value))
        size = {"M": 1e6, "B": 1e9}[text[-1]]
        assert float(text[:-1]) * size == pytest.approx(value, rel=5.1e-3)
        assert len(text) <= 5
    assert [number("n", n) for n in (1, 4096, 100_352)] == ["1", "4096", "100352"]
    assert [number("tokens", n) for n in (768, 9_999, 399_360, 999_499)] == ["768", "9999", "399k", "999k"]
    assert number("n", 16_384) == "16384", "a count of experts is exact"


def test_learning_rates_are_as_the_study_writes_them(rng: np.random.Generator):
    rates = (1e-5, 4e-4, 2.5e-4, 1e-3, 1e-2, 0.09, 0.1, 0.5, 1.0, 0.0)
    assert [number("learning_rate", rate) for rate in rates] == (
        ["1e-5", "4e-4", "2.5e-4", "1e-3", "1e-2", "9e-2", "0.1", "0.5", "1", "0"]
    )
    for rate in np.exp(rng.uniform(math.log(1e-6), math.log(1), 50)).tolist():
        assert float(number("learning_rate", rate)) == pytest.approx(rate, rel=1e-5)


@pytest.mark.parametrize("value", [999_499_999, 999_500_000, 999_999_999, 1_000_000_000])
def test_counts_about_a_billion_are_no_powers_of_ten(value: int):
    assert number("total_parameters", value) in ("999M", "1B", "1000M")


def test_values_are_called_what_they_are():
    told = {
        ("generalist", None): "no generalist",
        ("generalist", 0.5): "generalist 1/2",
        ("wiring", "plain"): "plain wiring",
        ("wiring", None): "",
        ("router", "default"): "default",
        ("balancing", None): "",
        ("balancing", "alpha 0.01, gamma 0"): "alpha 0.01, gamma 0",
        ("granularity", "1/2+1/4"): "g = 1/2+1/4",
        ("g", 0.25): "g = 1/4",
        ("s", 8.0): "s = 8",
        ("n", 32): "n = 32",
        ("k", 4): "k = 4",
        ("kind", "heterogeneous"): "heterogeneous",
        ("tokens", 400_000_000): "tokens = 400M",
        ("total_parameters", 1.5e9): "total = 1.5B",
        ("learning_rate", 0.004): "rate = 4e-3",
        ("scale", "50m"): "50m",
        ("", None): "",
    }
    assert {key: describe(*key) for key in told} == told
    assert {coordinate for coordinate, _ in told} == {*GROUPS, ""}


def test_a_tip_says_what_was_trained_and_how_it_did(rng: np.random.Generator, row_of):
    losses = rng.normal(3, 0.1, (2, 2)).tolist()
    noise = Noise(float(rng.uniform(0.01, 0.1)), 3)
    dense = Cell(row_of({}), dict(enumerate(losses[0])), noise)
    cell = Cell(row_of({**MOE, "seed": 1}, settings="alpha=0.5"), dict(enumerate(losses[1])), noise)
    name, loss, against, layer, size, settings = tip(cell, "loss", dense).splitlines()
    assert name == "tiny-g1/4-n8-s2-dropless", "no seed: it is a cell"
    assert loss == f"held-out cross-entropy (nats): {np.mean(losses[1]):.4f} ± {cell.margin:.4f}, 2 seeds"
    effect, margin = difference(cell, dense)
    assert margin is not None
    assert against == f"against dense: {effect:+.4f} ± {margin:.4f}" + (
        " within noise" if abs(effect) <= margin else ""
    )
    assert layer == "n 8, k 4, g 1/4, s 2"
    total, active = cell.row["total_parameters"], cell.row["active_parameters"]
    assert active < total < 1e6
    assert size == f"{total} parameters, {active} active, 768 tokens"
    assert settings == "alpha=0.5"


def test_a_tip_says_no_more_than_is_known(row_of):
    cell = Cell(row_of(GENERAL), {0: 2.0})
    lines = tip(cell, "without_capacity_loss", None).splitlines()
    assert lines[:2] == [
        "tiny-g1/4-n6-s2-dropless-gen1/2-plain",
        # Labels of two lines are one here.
        "held-out cross-entropy, no capacity (nats): 2.0000, 1 seed",
    ]
    assert lines[2:] == ["n 6, k 2, g 1/4, s 2", lines[3]]
    assert "against dense" not in "".join(lines)


def test_tips_are_circles_where_points_are_and_escaped():
    svg = '<svg><g id="patch_1"><text>&lt;/svg></text></g></svg>\n'
    found = with_tips(svg, [(1.25, 30.0, "a < b & c"), (200.06, 7, "two\nlines")])
    assert found.startswith('<svg><g id="patch_1"><text>&lt;/svg></text></g>')
    drawing = ET.fromstring(found)
    circles = [element for element in drawing.iter() if element.get("class") == "point"]
    assert [(c.get("cx"), c.get("cy"), c[0].text) for c in circles] == [
        ("1.2", "30.0", "a < b & c"),
        ("200.1", "7.0", "two\nlines"),
    ]
    assert all(float(c.get("r") or 0) > 4 for c in circles), "larger than the mark, for the pointer"
