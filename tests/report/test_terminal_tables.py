"""Tables for the terminal."""

import io

import pytest
from rich.console import Console
from rich.table import Table
from scipy.stats import t

from slicedice.report.results import Results
from slicedice.report.tables import MOST_LINES, cell_table, count_table, listed, plain_console, show, status_table

MOE = {"model.experts": "n=8 k=4 g=1/4"}


def lines(table: Table) -> list[dict[str, str]]:
    """The table's lines by column; each has to be printed whole, on one line, where the output is no terminal."""
    file = io.StringIO()
    show(table, Console(file=file, width=80))
    names = [str(column.header) for column in table.columns]
    found = [
        dict(zip(names, map(str, line), strict=True))
        for line in zip(*(column.cells for column in table.columns), strict=True)
    ]
    printed = file.getvalue().splitlines()
    for line in found:
        assert any(printed_line.split() == " ".join(line.values()).split() for printed_line in printed)
    return found


def test_a_cell_is_a_line_with_its_noise(row_of):
    rows = [row_of({"seed": i}, loss=loss) for i, loss in enumerate([3.0, 3.5])]
    rows += [row_of({**MOE, "seed": i}, loss=loss) for i, loss in enumerate([2.0, 2.0])]
    dense, moe = lines(cell_table(Results(rows, [])))
    # Differences of -1 and -1.5: one degree of freedom, variance 0.125, of which each cell's runs have half.
    half, apart = (t.ppf(0.975, 1) * (0.125 / 2 * share) ** 0.5 for share in (1 / 2, 1))
    assert dense == {
        "g": "dense",
        "n": "",
        "k": "",
        "s": "",
        "seeds": "2",
        "total": f"{rows[0]['total_parameters'] / 1e6:.2f}M",
        "loss": "3.2500",
        "± 95 %": f"{half:.4f}",
        "against dense": "",
        "train": "2.7500",
    }
    assert [moe[name] for name in ("g", "n", "k", "s", "seeds")] == ["1/4", "8", "4", "2", "2"]
    assert (moe["loss"], moe["± 95 %"], moe["train"]) == ("2.0000", f"{half:.4f}", "1.5000")
    assert moe["against dense"] == f"-1.2500 ± {apart:.4f} within noise"


def test_the_loss_without_a_capacity_is_beside_the_loss_with_it(row_of):
    rows = [row_of({}, loss=3.0), row_of({**MOE, "router.kind": "default"}, loss=2.0, without_capacity_loss=1.5)]
    rows += [row_of({**MOE, "router.kind": "default", "seed": 1}, state="missing")]
    dense, moe, missing = lines(cell_table(Results(rows, [])))
    assert (dense["loss"], dense["no capacity"], dense["state"]) == ("3.0000", "", "")
    assert (moe["loss"], moe["no capacity"], moe["against dense"]) == ("2.0000", "1.5000", "-1.0000")
    assert (missing["loss"], missing["no capacity"], missing["state"]) == ("", "", "missing")


def test_routers_are_told_where_they_differ(row_of):
    alike = [row_of({}, loss=3.0), row_of(MOE, loss=2.0)]
    assert "router" not in lines(cell_table(Results(alike, [])))[0]
    other = row_of({**MOE, "router.kind": "default"}, loss=2.0)
    assert [line["router"] for line in lines(cell_table(Results([*alike, other], [])))] == ["", "dropless", "default"]


def test_seeds_that_agree_exactly_are_not_called_one_seed(row_of):
    rows = [row_of({"seed": i}, loss=3.0) for i in range(2)]
    (line,) = lines(cell_table(Results(rows, [])))
    assert line["± 95 %"] == "0.0000"


def test_one_seed_is_called_so(row_of):
    (line,) = lines(cell_table(Results([row_of({}, loss=3.0)], [])))
    assert line["± 95 %"] == "one seed"


@pytest.mark.parametrize("state", ["missing", "running", "diverged", "crashed", "out_of_memory", "preempted"])
def test_runs_without_a_loss_are_a_line_with_their_state(row_of, state: str):
    rows = [row_of({}, loss=3.0), *(row_of({**MOE, "seed": seed}, state=state) for seed in (7, 8))]
    dense, other = lines(cell_table(Results(rows, [])))
    assert dense["state"] == ""
    assert (other["g"], other["seeds"], other["loss"]) == ("1/4", "2", "")
    assert other["state"] == state


def test_the_status_names_every_run_in_full(row_of):
    long = {"model.experts": "n=4 k=2 g=1/4 + n=8 k=2 g=1/8", "model.generalist": "1/4", "router.kind": "default"}
    rows = [row_of({**long, "router.alpha": 0.125, "seed": 12}, state="crashed"), row_of({}, loss=3.0)]
    crashed, done = lines(status_table(rows))
    known = {"id": rows[0]["id"], "state": "crashed", "steps": "6", "loss": "", "reason": "why it crashed"}
    assert crashed == {"run": rows[0]["name"], **known}
    known = {"id": rows[1]["id"], "state": "done", "steps": "6", "loss": "3.0000", "reason": ""}
    assert done == {"run": rows[1]["name"], **known}


def test_runs_are_counted_by_scale_and_state(row_of):
    one, two = row_of({}), row_of({"scale": "big", "model.d_model": 32})
    rows = [{**one, "state": state} for state in ("done", "missing", "done", "crashed")]
    assert lines(count_table(rows)) == [{"scale": "tiny", "missing": "1", "done": "2", "crashed": "1", "runs": "4"}]
    rows += [{**two, "state": state} for state in ("done", "running")]
    assert lines(count_table(rows)) == [
        {"scale": "tiny", "missing": "1", "running": "", "done": "2", "crashed": "1", "runs": "4"},
        {"scale": "big", "missing": "", "running": "1", "done": "1", "crashed": "", "runs": "2"},
        {"scale": "all", "missing": "1", "running": "1", "done": "3", "crashed": "1", "runs": "6"},
    ]


def test_a_status_lists_all_runs_or_of_many_those_that_tell_something(row_of):
    row = row_of({})
    few = [{**row, "state": "missing", "reason": None}] * MOST_LINES
    assert listed(few) == few
    told = [
        {**row, "state": "running", "reason": None},
        {**row, "state": "crashed", "reason": "no disk"},
        {**row, "state": "done", "reason": "its result.json is damaged"},
    ]
    assert listed([*few, *told, *({**row, "state": "done", "reason": None},)]) == told
    assert len(listed([{**row, "state": "crashed", "reason": "no disk"}] * 3 * MOST_LINES)) == MOST_LINES


def test_brackets_in_reasons_are_printed_as_they_are(row_of):
    reason = "[/red] f32[batch] :smile: [bold]x"
    (line,) = lines(status_table([row_of({}, state="crashed", reason=reason)]))
    assert line["reason"] == reason
    file = io.StringIO()
    plain_console(file=file).print(reason, soft_wrap=True)
    assert file.getvalue() == reason + "\n"
