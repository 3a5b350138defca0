"""Which figures need a run, why two ids differ, and what a report lacks."""

import json
from collections import Counter
from typing import Any

import pytest

GRID = '''
"""Coarse or fine?"""

from slicedice.grid import Figure, Grid, Panel, axis


def get_grid(scale):
    panels = (Panel("P", x="g", hue="n"),)
    coarse = axis("model.experts", ["dense", "n=4 g=1/2"])
    fine = axis("model.experts", ["dense", "n=8 g=1/4"])
    figures = (Figure("coarse", "The coarse ones", panels, coarse), Figure("fine", "The fine ones", panels, fine))
    return Grid([{"model.experts": "n=16 g=1/4"}], figures)
'''
DENSE, COARSE, FINE, ALONE = (
    f"smoke-{layer}-seed0" for layer in ("dense", "g1/2-n4-s2-dropless", "g1/4-n8-s2-dropless", "g1/4-n16-s4-dropless")
)
RATES = """
from slicedice.grid import Grid, axis


def get_grid(scale):
    return Grid(axis("optimizer.learning_rate", [0.5, 0.25]))
"""


@pytest.fixture
def figures(desk) -> dict[str, str]:
    """A grid with two figures; its runs' ids by name."""
    desk.write("sweeps/figures.py", GRID)
    return ids_of(desk, grid="figures")


def ids_of(desk, *arguments: str, grid: str) -> dict[str, str]:
    plan = json.loads(desk.sweep("plan", "--json", *arguments, grid=grid).out)
    return {run["name"]: run["id"] for run in plan["runs"]}


def said(desk, *arguments: str, **options: str) -> dict[str, Any]:
    """What an explanation says as JSON, which the table has too."""
    call = desk.sweep(*arguments, "--json", **options)
    assert (call.status, call.err) == (0, "")
    content = json.loads(call.out)
    table = desk.sweep(*arguments, **options)
    assert (table.status, table.err) == (0, "")
    assert content["says"] in table.out
    words = table.out.split()
    assert all(word in words for line in content[arguments[0]] for text in line.values() for word in text.split())
    assert all(id_ in table.out for id_ in content["runs"])
    return content


def refused(desk, *arguments: str, **options: str) -> str:
    """The one line on standard error of a call that cannot be answered."""
    call = desk.sweep(*arguments, **options)
    assert (call.status, call.out) == (2, "")
    (line,) = call.err.splitlines()
    return line


def prefix(ids: dict[str, str], name: str) -> str:
    """The shortest beginning of a run's id that no other id has."""
    id_ = ids[name]
    return next(id_[:i] for i in range(1, 13) if sum(other.startswith(id_[:i]) for other in ids.values()) == 1)


def test_why_names_the_figures_that_need_a_run(desk, figures):
    needs = {
        DENSE: [("coarse", "The coarse ones"), ("fine", "The fine ones")],
        COARSE: [("coarse", "The coarse ones")],
        ALONE: [("", "no figure: a point or anchor of the grid")],
    }
    for name, lines in needs.items():
        told = said(desk, "why", name, grid="figures")
        assert told == {
            "runs": [figures[name]],
            "why": [{"grid": "figures", "figure": figure, "title": title} for figure, title in lines],
            "says": "",
        }
        for other_name in (figures[name], prefix(figures, name)):
            assert said(desk, "why", other_name, grid="figures") == told


def test_diff_names_the_fields_and_what_they_mean(desk, figures):
    told = said(desk, "diff", DENSE, figures[COARSE], grid="figures")
    assert told["runs"] == [figures[DENSE], figures[COARSE]]
    values = {line["field"]: (line["one"], line["other"]) for line in told["diff"]}
    assert values["model.layer.experts"] == ("none", "n=4 k=2 g=1/2")
    assert values["router.kind"] == ("none", "dropless")
    assert "seed" not in values
    assert "compared with each other" in told["says"]
    assert said(desk, "diff", COARSE, prefix(figures, COARSE), grid="figures")["diff"] == []
    assert "They are one run" in desk.sweep("diff", COARSE, COARSE, grid="figures").out


def test_diff_tells_seeds_of_one_cell_from_other_cells_and_other_trainings(desk, figures):
    desk.write("sweeps/rates.py", RATES)
    seeds = ["--seeds", "2"]
    one = said(desk, "diff", FINE, FINE.replace("seed0", "seed1"), *seeds, grid="figures")
    assert one["diff"] == [{"field": "seed", "one": "0", "other": "1"}]
    assert one["says"] == "They are seeds of one cell."
    assert (
        "over the seeds that both have"
        in said(desk, "diff", DENSE, FINE.replace("0", "1"), *seeds, grid="figures")["says"]
    )
    plan = json.loads(desk.sweep("plan", "--json", grid="rates").out)["runs"]
    rates = said(desk, "diff", *(run["id"] for run in plan), grid="rates")
    assert rates["diff"] == [{"field": "optimizer.learning_rate", "one": "0.5", "other": "0.25"}]
    assert "optimizer.learning_rate: claims do not compare them" in rates["says"]


def test_a_name_of_several_runs_is_refused_with_what_tells_them_apart(desk):
    desk.write("sweeps/rates.py", RATES)
    plan = json.loads(desk.sweep("plan", "--json", grid="rates").out)["runs"]
    for verb in (["why", DENSE], ["diff", DENSE, plan[0]["id"]]):
        line = refused(desk, *verb, grid="rates")
        assert "any of 2 runs" in line
        assert all(f"{run['id']} ({run['settings']})" in line for run in plan)


def test_the_beginning_of_several_ids_is_refused_with_some_of_them(desk):
    ids = ids_of(desk, "--seeds", "17", grid="mine")  # more than there are digits
    first, count = Counter(id_[0] for id_ in ids.values()).most_common(1)[0]
    line = refused(desk, "why", first, "--seeds", "17")
    assert f"any of {count} runs" in line
    assert sum(id_ in line for id_ in ids.values() if id_[0] == first) == min(count, 6)


@pytest.mark.parametrize("name", ["smoke-dense-seed7", "0123456789ab", "dense", "../texts"])
def test_what_is_no_run_is_refused(desk, name: str):
    line = refused(desk, "why", name)
    assert repr(name) in line
    assert "no run of the grid mine" in line
    assert repr(name) in refused(desk, "diff", DENSE, name)
    assert "of any grid at smoke" in refused(desk, "why", name, grid="")


def test_of_several_runs_of_a_name_the_usual_one_is_meant(desk):
    desk.write("sweeps/rates.py", RATES.replace("0.25", "4e-3"))
    plan = json.loads(desk.sweep("plan", "--json", grid="rates").out)["runs"]
    usual = next(run for run in plan if "0.004" in run["settings"])
    assert {run["name"] for run in plan} == {DENSE}
    assert said(desk, "why", DENSE, grid="rates")["runs"] == [usual["id"]]


def test_runs_are_counted(desk):
    for arguments in (["why"], ["why", ""], ["why", DENSE, DENSE], ["diff", DENSE], ["plan", DENSE]):
        assert arguments[0] in refused(desk, *arguments)


def test_a_run_that_is_in_the_store_alone_is_found_by_its_id(desk, figures):
    asked = ["--config.optimizer.learning_rate=0.25"]
    desk.sweep(*asked, "--only", "*dense*")
    ((stored,),) = desk.launched
    for name in (stored, stored[:8]):
        told = said(desk, "why", name, grid="figures")
        assert (told["runs"], told["why"]) == ([stored], [])
        assert "No grid looked through trains it" in told["says"]
    told = said(desk, "diff", DENSE, stored[:8], grid="figures")
    assert told["diff"] == [{"field": "optimizer.learning_rate", "one": "0.004", "other": "0.25"}]
    # With what it was trained with, it is of the grid.
    assert [line["figure"] for line in said(desk, "why", stored, *asked, grid="figures")["why"]] == ["coarse", "fine"]


def test_a_run_of_the_store_that_is_ambiguous_or_cannot_be_read_is_told(desk):
    desk.sweep("--seeds", "17", "--config.optimizer.learning_rate=0.25")  # so many that some begin alike
    stored = [run.path.name for run in desk.runs]
    planned = {id_[0] for id_ in ids_of(desk, grid="mine").values()}
    counts = Counter(id_[0] for id_ in stored if id_[0] not in planned)
    first, count = counts.most_common(1)[0]
    assert f"any of {count} runs in the store" in refused(desk, "why", first)
    victim = desk.runs[0].path
    (victim / "spec.json").write_text("torn")
    assert f"{victim.name}/spec.json cannot be read" in refused(desk, "why", victim.name)
    (victim / "spec.json").write_bytes((desk.runs[1].path / "spec.json").read_bytes())
    assert f"is of the run {stored[1]}" in refused(desk, "diff", DENSE, victim.name)


def test_without_a_grid_all_grids_are_looked_through(desk):
    desk.write("sweeps/broken.py", "1 / 0")
    desk.write("sweeps/union.py", GRID + "DEFAULT_SCALES = ('smoke',)")
    ids = ids_of(desk, grid="granularity_vs_count")
    told = said(desk, "why", ids[COARSE], grid="")
    grids = {line["grid"] for line in told["why"]}
    assert {"granularity_vs_count", "dropless", "mine"} <= grids
    assert not {"paper", "union", "broken"} & grids
    assert {"grid": "mine", "figure": "", "title": "no figure: a point or anchor of the grid"} in told["why"]
    assert any(line["figure"] == "figure_2" for line in told["why"])
    other = ids["smoke-g1/2-n8-s4-dropless-seed0"]
    assert [line["field"] for line in said(desk, "diff", ids[COARSE], other, grid="")["diff"]] == [
        "model.layer.experts"
    ]


def test_what_is_missing_is_listed_with_the_figures_that_lack_it(desk, figures):
    def told(*arguments: str) -> dict[str, Any]:
        call = desk.sweep("report", "--missing", "--json", *arguments, grid="figures")
        assert (call.status, call.err) == (0, "")
        return json.loads(call.out)

    before = {DENSE: "coarse, fine", COARSE: "coarse", FINE: "fine", ALONE: ""}
    lines = told()["missing"]
    assert {line["run"]: line["figures"] for line in lines} == before
    assert {(line["id"], line["state"], line["reason"]) for line in lines} == {
        (id_, "missing", "") for id_ in figures.values()
    }
    assert not (desk.folder / "runs").exists()
    desk.outcomes(n4="crashed", n8="diverged", n16="missing")
    desk.sweep(grid="figures")
    assert told() == {
        "count": 4,
        "missing": [
            {"run": COARSE, "id": figures[COARSE], "state": "crashed", "figures": "coarse", "reason": "because"},
            {"run": ALONE, "id": figures[ALONE], "state": "missing", "figures": "", "reason": ""},
        ],
    }
    table = desk.sweep("report", "--missing", grid="figures")
    assert table.status == 0
    assert "2 of 4 runs have no result." in table.out
    assert [name in table.out for name in (DENSE, COARSE, FINE, ALONE)] == [False, True, False, True]
    assert told("--only", "*dense*")["missing"] == []
    assert desk.sweep("report", "--missing", "--only", "*dense*", grid="figures").out == "0 of 1 runs have no result.\n"


def test_what_a_report_leaves_out_is_missing_from_it(desk, figures):
    desk.sweep(grid="figures")
    for name, key, value in ((COARSE, "train", None), (FINE, "provenance", {"data_fingerprint": "other"})):
        path = desk.folder / "runs" / "runs" / figures[name] / "result.json"
        result = json.loads(path.read_text())
        result[key] = value and {**result[key], **value}
        path.write_text(json.dumps(result))
    lines = json.loads(desk.sweep("report", "--missing", "--json", grid="figures").out)["missing"]
    assert [(line["run"], line["state"], line["figures"]) for line in lines] == [
        (COARSE, "done", "coarse"),
        (FINE, "done", "fine"),
    ]
    assert "its result.json is damaged" in lines[0]["reason"]
    assert "other text" in lines[1]["reason"]


def test_what_only_looks_writes_nothing(desk, figures):
    desk.outcomes(n8="crashed")
    desk.sweep(grid="figures")
    before = {path: path.stat().st_mtime_ns for path in desk.folder.rglob("*")}
    for arguments in (["report", "--json"], ["report", "--missing"], ["status"], ["why", FINE], ["diff", FINE, DENSE]):
        assert desk.sweep(*arguments, grid="figures").out
        assert {path: path.stat().st_mtime_ns for path in desk.folder.rglob("*")} == before


def test_missing_goes_with_report_alone(desk):
    for verb in ("run", "plan", "status"):
        assert "--missing" in refused(desk, verb, "--missing")
