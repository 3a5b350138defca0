"""Tables for the terminal."""

from rich.console import Console
from rich.table import Table

from slicedice.cost import Cost
from slicedice.grid import Plan
from slicedice.report.results import Results, Row
from slicedice.report.statistics import Cell, cells
from slicedice.spec import run_name


def cell_table(results: Results) -> Table:
    """A line for each cell: its loss over seeds, and how far that is from dense in units of noise."""
    table = Table(title="Held-out cross-entropy, mean over domains and seeds", title_justify="left")
    for name in ("g", "n", "k", "s"):
        table.add_column(name, justify="right")
    for name in ("router", "seeds", "total", "loss (nats)", "± 95 %", "against dense", "train loss", "state"):
        table.add_column(name, justify="left" if name in ("router", "state") else "right")
    measured = {cell.row["id"]: cell for cell in cells(results.rows, "loss")}
    train = {cell.row["id"]: cell for cell in cells(results.rows, "train_loss")}
    dense = next((cell for cell in measured.values() if cell.row["dense"]), None)
    for cell in measured.values():
        row = cell.row
        table.add_row(
            *(
                ["dense", "", "", ""]
                if row["dense"]
                else [row["granularity"], str(row["n"]), str(row["k"]), f"{row['s']:g}"]
            ),
            row["router"] or "",
            str(len(cell.values)),
            f"{row['total_parameters'] / 1e6:.2f}M",
            f"{cell.mean:.4f}",
            f"{1.96 * cell.error:.4f}" if cell.error is not None else "one seed",
            verdict(cell, dense),
            f"{train[row['id']].mean:.4f}" if row["id"] in train else "",
            "done",
        )
    for row in results.rows:
        if row["state"] != "done":
            known = [row["granularity"], str(row["n"]), str(row["k"]), f"{row['s']:g}", row["router"] or ""]
            table.add_row(*known, f"seed {row['seed']}", "", "", "", "", "", row["state"])
    return table


def verdict(cell: Cell, dense: Cell | None) -> str:
    """The difference to dense, called what it is when seeds alone could make it."""
    if dense is None or cell is dense:
        return ""
    difference = cell.mean - dense.mean
    if cell.error is None or dense.error is None:
        return f"{difference:+.4f}"
    margin = 1.96 * (cell.error**2 + dense.error**2) ** 0.5
    return f"{difference:+.4f}" + ("" if abs(difference) > margin else " within noise")


def plan_table(plan: Plan, costs: dict[str, Cost], missing: set[str]) -> Table:
    """A line for each run and what it costs."""
    table = Table(title="Plan, by arithmetic", title_justify="left")
    for name in ("run", "id", "to train"):
        table.add_column(name, overflow="fold")
    for name in ("parameters", "active", "tokens", "FLOPs", "GiB", "hours"):
        table.add_column(name, justify="right")
    for id_, (spec, _) in plan.runs.items():
        c = costs[id_]
        table.add_row(
            run_name(spec),
            id_,
            "yes" if id_ in missing else "no",
            *(f"{count / 1e6:,.1f}M" for count in (c.parameters, c.active_parameters, c.tokens)),
            f"{c.flops:.2e}",
            f"{c.bytes / 2**30:,.2f}",
            f"{c.seconds / 3600:,.2f}",
        )
    return table


def status_table(rows: list[Row]) -> Table:
    """A line for each run and its state."""
    table = Table(title="Runs", title_justify="left")
    for name in ("run", "id", "state", "steps", "loss (nats)", "reason"):
        table.add_column(name, justify="right" if name in ("steps", "loss (nats)") else "left", overflow="fold")
    for row in rows:
        loss = f"{row['loss']:.4f}" if row.get("loss") is not None else ""
        table.add_row(row["name"], row["id"], row["state"], str(row["steps"]), loss, row["reason"] or "")
    return table


def show(table: Table, console: Console) -> None:
    """Prints a table, as wide as it needs to be where the output is no terminal."""
    if not console.is_terminal:
        console = Console(file=console.file, width=max(console.width, 180))
    console.print(table)
