"""Tables for the terminal."""

from rich.console import Console
from rich.table import Table

from slicedice.cost import Cost
from slicedice.grid import Plan
from slicedice.report.results import Results, Row
from slicedice.report.statistics import Cell, cells, dense_beside, difference
from slicedice.spec import run_name


def cell_table(results: Results) -> Table:
    """A line for each cell: its loss over seeds, and how far that is from dense in units of noise."""
    table = Table(title="Held-out cross-entropy, mean over domains and seeds", title_justify="left")
    with_settings = any(row["settings"] for row in results.rows)
    for name in ("g", "n", "k", "s"):
        table.add_column(name, justify="right")
    for name in ("router", *(["settings"] if with_settings else [])):
        table.add_column(name)
    free = {c.row["id"]: c for c in cells(results.rows, "without_capacity_loss")}
    headings = ["seeds", "total", "loss (nats)", "± 95 %", "against dense"]
    for name in (*headings, *(["without capacity"] if free else []), "train loss"):
        table.add_column(name, justify="right")
    table.add_column("state")
    measured, train = cells(results.rows, "loss"), {c.row["id"]: c for c in cells(results.rows, "train_loss")}
    for cell in measured:
        row = cell.row
        table.add_row(
            *_layer(row, with_settings),
            str(len(cell.values)),
            f"{row['total_parameters'] / 1e6:.2f}M",
            f"{cell.mean:.4f}",
            f"{cell.margin:.4f}" if cell.margin is not None else "one seed",
            verdict(cell, dense_beside(cell, measured)),
            *([f"{free[row['id']].mean:.4f}" if row["id"] in free else ""] if free else []),
            f"{train[row['id']].mean:.4f}" if row["id"] in train else "",
            "done",
        )
    for row in results.rows:
        if row["state"] != "done":
            table.add_row(*_layer(row, with_settings), f"seed {row['seed']}", *[""] * (6 if free else 5), row["state"])
    return table


def _layer(row: Row, with_settings: bool) -> list[str]:
    """The columns that say which layer, router and settings a row is of."""
    layer = [row["granularity"], str(row["n"]), str(row["k"]), f"{row['s']:g}"]
    settings = [row["settings"]] if with_settings else []
    return [*(["dense", "", "", ""] if row["dense"] else layer), row["router"] or "", *settings]


def verdict(cell: Cell, dense: Cell | None) -> str:
    """The difference to dense, called what it is when seeds alone could make it."""
    if dense is None or cell is dense:
        return ""
    effect, margin = difference(cell, dense)
    return f"{effect:+.4f}" + (" within noise" if margin is not None and abs(effect) <= margin else "")


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
    for name in ("run", "settings", "id", "state", "steps", "loss (nats)", "reason"):
        table.add_column(name, justify="right" if name in ("steps", "loss (nats)") else "left", overflow="fold")
    for row in rows:
        loss = f"{row['loss']:.4f}" if row.get("loss") is not None else ""
        known = (row["name"], row["settings"], row["id"], row["state"], str(row["steps"]))
        table.add_row(*known, loss, row["reason"] or "")
    return table


def show(table: Table, console: Console) -> None:
    """Prints a table, as wide as it needs to be where the output is no terminal."""
    if not console.is_terminal:
        console = Console(file=console.file, width=max(console.width, 180))
    console.print(table)
