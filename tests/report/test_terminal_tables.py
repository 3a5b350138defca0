"""Tables for the terminal."""

import io

import pytest
from rich.console import Console
from rich.table import Table
from scipy.stats import t

from slicedice.report.results import Results
from slicedice.report.tables import cell_table, show, status_table

MOE = {"model.experts": "n=8 k=4 g=1/4"}


def text(table: Table) -> list[list[str]]:
    """The table's rows as they are printed where the output is no terminal, each a list of cells."""
    file = io.StringIO()
    show(table, Console(file=file, width=80))
    lines = [line for line in file.getvalue().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_a_cell_is_a_line_with_its_noise(row_of):
    rows = [row_of({"seed": i}, loss=loss) for i, loss in enumerate([3.0, 3.5])]
    rows += [row_of({**MOE, "seed": i}, loss=loss) for i, loss in enumerate([2.0, 2.0])]
    dense, moe = text(cell_table(Results(rows, [])))
    half = t.ppf(0.975, 2) * (0.125 / 2) ** 0.5 / 2**0.5  # squares of 2 * 0.25**2, two degrees of freedom, two seeds
    assert dense[0] == "dense"
    assert dense[5:10] == ["2", f"{rows[0]['total_parameters'] / 1e6:.2f}M", "3.2500", f"{half:.4f}", ""]
    assert moe[:6] == ["1/4", "8", "4", "2", "dropless", "2"]
    assert moe[7:12] == ["2.0000", f"{half:.4f}", "-1.2500", "1.5000", "done"]


def test_the_loss_without_a_capacity_is_beside_the_loss_with_it(row_of):
    rows = [row_of({}, loss=3.0), row_of({**MOE, "router.kind": "default"}, loss=2.0, without_capacity_loss=1.5)]
    rows += [row_of({**MOE, "router.kind": "default", "seed": 1}, state="missing")]
    dense, moe, missing = text(cell_table(Results(rows, [])))
    assert dense[9:12] == ["", "", "2.5000"]
    assert moe[9:12] == ["-1.0000", "1.5000", "1.5000"]
    assert (missing[9:12], missing[-1]) == (["", "", ""], "missing")


def test_seeds_that_agree_exactly_are_not_called_one_seed(row_of):
    rows = [row_of({"seed": i}, loss=3.0) for i in range(2)]
    ((*_, interval, _, _, _),) = text(cell_table(Results(rows, [])))
    assert interval == "0.0000"


def test_one_seed_is_called_so(row_of):
    ((*_, interval, _, _, _),) = text(cell_table(Results([row_of({}, loss=3.0)], [])))
    assert interval == "one seed"


@pytest.mark.parametrize("state", ["missing", "running", "diverged", "crashed", "out_of_memory", "preempted"])
def test_a_run_without_a_loss_is_a_line_with_its_state(row_of, state: str):
    rows = [row_of({}, loss=3.0), row_of({**MOE, "seed": 7}, state=state)]
    dense, other = text(cell_table(Results(rows, [])))
    assert dense[-1] == "done"
    assert (other[0], other[5], other[7], other[-1]) == ("1/4", "seed 7", "", state)


def test_the_status_names_every_run_in_full(row_of):
    long = {"model.experts": "n=4 k=2 g=1/4 + n=8 k=2 g=1/8", "model.generalist": "1/4", "router.kind": "default"}
    rows = [row_of({**long, "router.alpha": 0.125, "seed": 12}, state="crashed"), row_of({}, loss=3.0)]
    crashed, done = text(status_table(rows))
    assert crashed == [rows[0]["name"], "", rows[0]["id"], "crashed", "6", "", "why it crashed"]
    assert done == [rows[1]["name"], "", rows[1]["id"], "done", "6", "3.0000", ""]
