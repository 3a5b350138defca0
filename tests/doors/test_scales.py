"""Several scales in one sweep, and grids that name their own."""

import json
import re

import pytest

from slicedice import machine, sweep

FIGURE = '''
"""Does it grow?"""

from slicedice.grid import Figure, Grid, Panel, axis

{scales}


def get_grid(scale):
    points = axis("model.experts", ["dense", "n=4 g=1/2"] if scale == "smoke" else ["dense", "n=8 g=1/2", "n=4 g=1"])
    return Grid(points, (Figure("figure_1", "Growth", (Panel("P", x="n", hue="g"),)),))
'''


@pytest.fixture
def grown(desk):
    desk.write("sweeps/grown.py", FIGURE.format(scales=""))
    desk.write("sweeps/own.py", FIGURE.format(scales='DEFAULT_SCALES = ("smoke", "nano")'))
    return desk


def scales_of(out: str) -> list[str]:
    return [run["name"].split("-")[0] for run in json.loads(out)["runs"]]


def test_a_plan_counts_the_runs_of_all_scales(grown):
    one, other = (json.loads(grown.sweep("plan", "--json", grid="grown", scale=s).out) for s in ("smoke", "nano"))
    both = json.loads(grown.sweep("plan", "--json", grid="grown", scale="smoke,nano").out)
    assert (one["count"], other["count"], both["count"]) == (2, 3, 5)
    assert both["flops"] == one["flops"] + other["flops"]
    assert {run["id"] for run in both["runs"]} == {run["id"] for part in (one, other) for run in part["runs"]}
    # Seeds are outermost: what is stopped early has all scales.
    seeds = json.loads(grown.sweep("plan", "--json", "--seeds", "2", grid="grown", scale="smoke,nano").out)
    assert [run["name"][-1] for run in seeds["runs"]] == ["0"] * 5 + ["1"] * 5


def test_a_figure_has_panels_for_each_scale(grown):
    call = grown.sweep(grid="grown", scale="smoke,nano")
    assert call.status == 0
    assert sorted(scales_of(grown.sweep("status", "--json", grid="grown", scale="smoke,nano").out)) == (
        ["nano"] * 3 + ["smoke"] * 2
    )
    (report,) = (grown.folder / "runs" / "reports").iterdir()
    assert report.name.startswith("grown-smoke+nano")
    words = re.findall(r"<text[^>]*>([^<]*)</text>", (report / "figure_1.svg").read_text())
    assert {"P · smoke", "P · nano"} <= set(words)
    assert (report / "index.html").read_text().count("<svg") == 1
    # What one scale has done, both have.
    grown.sweep(grid="grown", scale="nano")
    assert len(grown.launched) == 1


def test_the_status_counts_the_states_of_each_scale(grown):
    grown.outcomes(n8="crashed")
    grown.sweep(grid="grown", scale="smoke,nano")
    lines = [line.split() for line in grown.sweep("status", grid="grown", scale="smoke,nano").out.splitlines()]
    head = lines.index(["scale", "done", "crashed", "runs"])
    assert lines[head + 2 : head + 5] == [["smoke", "2", "2"], ["nano", "2", "1", "3"], ["all", "4", "1", "5"]]


@pytest.mark.parametrize("scale", ["smoke,", ",smoke", "smoke,smoke"])
def test_a_scale_counts_once_however_often_it_is_named(grown, scale: str):
    assert json.loads(grown.sweep("plan", "--json", grid="grown", scale=scale).out)["count"] == 2


@pytest.mark.parametrize("scale", [",", "smoke,nona"])
def test_a_list_of_scales_that_cannot_be_is_refused(grown, scale: str):
    call = grown.sweep("plan", grid="grown", scale=scale)
    assert (call.status, call.out) == (2, "")
    (line,) = call.err.splitlines()
    assert ("--scale" if scale == "," else "nona") in line


def test_a_grid_of_its_own_scales_is_not_trained_unasked_without_an_accelerator(grown, monkeypatch):
    monkeypatch.setattr(machine, "has_accelerator", lambda: False)
    for arguments in ([], ["retry"]):
        call = grown.sweep(*arguments, grid="own", scale="")
        assert (call.status, call.out) == (2, "")
        (line,) = call.err.splitlines()
        assert "smoke, nano" in line
        assert "--scale" in line
    assert grown.launched == []
    assert not (grown.folder / "runs").exists()
    # To look costs nothing, and to name a scale is to ask.
    for arguments in (["plan", "--json"], ["status", "--json"], ["--dry_run", "--json"]):
        assert sorted(scales_of(grown.sweep(*arguments, grid="own", scale="").out)) == ["nano"] * 3 + ["smoke"] * 2
    assert grown.sweep(grid="own", scale="smoke").status == 0
    assert [len(launch) for launch in grown.launched] == [2]


def test_a_grid_of_its_own_scales_is_trained_at_these_with_an_accelerator(grown, monkeypatch):
    monkeypatch.setattr(machine, "has_accelerator", lambda: True)
    assert grown.sweep(grid="own", scale="").status == 0
    assert [len(launch) for launch in grown.launched] == [5]


def test_the_paper_is_not_trained_unasked_without_an_accelerator(desk, monkeypatch):
    monkeypatch.setattr(machine, "has_accelerator", lambda: False)
    call = desk.sweep(grid="paper", scale="")
    assert (call.status, desk.launched) == (2, [])
    assert "10m, 20m, 50m, 80m, 110m, 200m, 300m" in call.err


def test_a_grid_of_the_scale_that_this_machine_trains_needs_no_accelerator(desk, monkeypatch, capsys):
    monkeypatch.setattr(machine, "has_accelerator", lambda: False)
    desk.write("sweeps/small.py", FIGURE.format(scales='DEFAULT_SCALES = ("nano",)'))
    assert sweep.main(["--grid", "small", "--launcher", "fake.py", "--config.data.source=texts"]) == 0
    assert [len(launch) for launch in desk.launched] == [3]
