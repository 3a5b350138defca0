"""A report's figures of each evaluation set, and the authors' values beside its own, as one asks for them."""

import json

import pytest

FIGURE = 'figures=(Figure("figure_1", "Mine", (Panel("P", x="g", hue="n"),)),)'


@pytest.fixture
def with_figure(desk):
    """The desk, where the grid has a figure."""
    source = (desk.folder / "sweeps" / "mine.py").read_text()
    source = source.replace("import Grid", "import Figure, Grid, Panel").replace(
        "Grid(points)", f"Grid(points, {FIGURE})"
    )
    desk.write("sweeps/mine.py", source)
    return desk


@pytest.mark.parametrize("verb", ["run", "report"])
def test_figures_of_evaluation_sets_are_drawn_by_what_draws_figures(with_figure, verb: str):
    desk = with_figure
    desk.sweep()
    (report,) = (desk.folder / "runs" / "reports").iterdir()
    assert not (report / "evaluation_sets").exists()
    assert desk.sweep(*([verb] if verb == "report" else []), "--evaluation_sets").status == 0
    drawn = {path.name for path in (report / "evaluation_sets").iterdir()}
    assert drawn == {"figure_1_a.png", "figure_1_a.svg"}


@pytest.mark.parametrize(
    "arguments", [["plan"], ["status"], ["--dry_run"], ["report", "--json"], ["--json"], ["report", "--missing"]]
)
def test_what_draws_nothing_refuses_evaluation_sets(desk, arguments: list[str]):
    call = desk.sweep(*arguments, "--evaluation_sets")
    assert call.status == 2
    assert "--evaluation_sets" in call.err
    assert len(call.err.strip().splitlines()) == 1
    assert desk.launched == []


@pytest.mark.parametrize("verb", ["why", "diff"])
def test_what_explains_refuses_evaluation_sets(desk, verb: str):
    runs = ["smoke-dense-seed0"] * (1 if verb == "why" else 2)
    call = desk.sweep(verb, *runs, "--evaluation_sets")
    assert call.status == 2
    assert "--evaluation_sets" in call.err


def test_the_authors_values_are_in_the_terminal_and_in_json_where_there_are_any(desk):
    assert "authors" not in desk.sweep().out
    assert json.loads(desk.sweep("report", "--json").out)["reference"] == []
    source = (desk.folder / "sweeps" / "mine.py").read_text()
    desk.write("sweeps/study.py", source.replace('"n=4 g=1/2", "n=8 g=1/4"', '"n=16 g=1/2"'))
    at = ["--config.data.source=texts", "--config.budget.tokens=1000000000", "--config.budget.batch_size=512"]
    told = desk.sweep(*at, grid="study", scale="80m").out
    assert "Beside the authors' values: the same setting" in told
    assert "another budget" not in told
    line = next(line for line in told.splitlines() if "4.752" in line)
    assert {"82M", "5.148", "80m", "3.1250"} <= set(line.split())
    assert "comparable only on the same data" in told
    compared = json.loads(desk.sweep("report", "--json", *at, grid="study", scale="80m").out)["reference"]
    assert [(c["same_setting"], c["configuration"]) for c in compared] == [
        (True, "dense"),
        (True, "dropless n16 g1/2 s8, alpha 0.01, gamma 0"),
    ]
    told = desk.sweep(grid="study", scale="80m").out
    assert "Beside the authors' values: the same layer and router, another budget" in told
    assert "the same setting" not in told
