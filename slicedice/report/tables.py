"""Tables for the terminal."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from slicedice.report.captions import verdict
from slicedice.report.claims import Judgement
from slicedice.report.results import Results, Row
from slicedice.report.statistics import cells, dense_beside
from slicedice.spec import run_name
from slicedice.store import Kind

if TYPE_CHECKING:
    from slicedice.planning import Planned, Where

MOST_LINES = 200
"""Of a status: to lay out thousands takes seconds, and no one reads them."""


def cell_table(results: Results) -> Table:
    """A line for each cell: its loss over seeds, and how far that is from dense, with its 95 % interval.

    What is not done is a line too, for each cell and state. Columns that would say nothing are left out.
    """
    measured, train = cells(results.rows, "loss"), _means(results.rows, "train_loss")
    free = _means([row for row in results.rows if row["router"] == "default"], "without_capacity_loss")
    lines = [
        {
            **_layer(cell.row),
            "seeds": str(len(cell.values)),
            "total": f"{cell.row['total_parameters'] / 1e6:.2f}M",
            "loss": f"{cell.mean:.4f}",
            "± 95 %": f"{cell.margin:.4f}" if cell.margin is not None else "one seed",
            "against dense": verdict(cell, dense_beside(cell, measured)),
            "no capacity": free.get(cell.row["cell"], ""),
            "train": train.get(cell.row["cell"], ""),
            "state": "",
        }
        for cell in measured
    ]
    waiting: dict[tuple[str, str], list[Row]] = {}
    for row in results.rows:
        if row["state"] != "done":
            waiting.setdefault((row["cell"], row["state"]), []).append(row)
    lines += [{**_layer(rows[0]), "seeds": str(len(rows)), "state": state} for (_, state), rows in waiting.items()]
    if len({line["router"] for line in lines} - {""}) < 2:
        for line in lines:
            line["router"] = ""
    return _table("Held-out cross-entropy in nats", lines, left=("router", "settings", "state"))


def claim_table(claims: list[Judgement]) -> Table:
    """A line for each claim that some run tells of."""
    lines = [
        {
            "claim": f"({judgement.claim.key}) {judgement.claim.text}",
            "verdict": str(judgement.verdict),
            "effect, 95 % interval": f"{judgement.effect} {judgement.effect.of}" if judgement.effect else "",
            "runs": str(len(judgement.runs)),
        }
        for judgement in claims
        if judgement.findings
    ]
    return _table("Claims of the study", lines, left=("claim", "verdict", "effect, 95 % interval"))


def _means(rows: list[Row], column: str) -> dict[str, str]:
    return {cell.row["cell"]: f"{cell.mean:.4f}" for cell in cells(rows, column)}


def _layer(row: Row) -> dict[str, str]:
    """The columns that say which layer, router and settings a row is of."""
    moe = {"g": row["granularity"], "n": str(row["n"]), "k": str(row["k"]), "s": f"{row['s']:g}"}
    layer = {"g": "dense", "n": "", "k": "", "s": ""} if row["dense"] else moe
    return {**layer, "router": row["router"] or "", "settings": row["settings"]}


def _table(title: str, lines: list[dict[str, str]], *, left: tuple[str, ...]) -> Table:
    """A table of what any line has; columns in `left` are aligned there, the others to the right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    order = dict.fromkeys(name for line in lines for name in line)
    names = [name for name in order if any(line.get(name) for line in lines)]
    for name in names:
        table.add_column(name, justify="left" if name in left else "right", overflow="fold")
    for line in lines:
        table.add_row(*(line.get(name, "") for name in names))
    return table


def plan_table(planned: "dict[str, Planned]", varied: dict[str, str], where: "Where", missing: set[str]) -> Table:
    """A line for each run and what it costs."""
    lines = []
    for id_, one in planned.items():
        c, answer = one.cost, one.answer or {}
        on_pod = {
            "mesh": one.execution.mesh.replace("replica", "r").replace("data", "d").replace("expert", "e"),
            "batch": f"{one.execution.micro_batch}{' remat' if one.execution.remat else ''}",
            "GB moved": f"{sum(c.traffic.values()) / 1e9:,.2f}",
        }
        compiled = f"{answer['bytes'] / 2**30:,.2f}" if answer.get("bytes") else ""
        lines.append(
            {
                "run": run_name(one.spec),
                "settings": varied[id_],
                "id": id_,
                "to train": "yes" if id_ in missing else "no",
                "parameters": f"{c.parameters / 1e6:,.1f}M",
                "active": f"{c.active_parameters / 1e6:,.1f}M",
                "tokens": f"{c.tokens / 1e6:,.1f}M",
                "FLOPs": f"{c.flops:.2e}",
                **(on_pod if where.topology or c.devices > 1 else {}),
                "GiB": f"{c.bytes / 2**30:,.2f}",
                "compiled": compiled,
                "fits": {True: "yes", False: "no", None: ""}[one.fits],
                "hours": f"{c.seconds / 3600:,.2f}",
                "price": "" if where.price is None else f"{where.price * c.device_hours:,.2f}",
            }
        )
    return _table("Plan, by arithmetic", lines, left=("run", "settings", "id", "to train", "mesh", "batch"))


def count_table(rows: list[Row]) -> Table:
    """A line for each scale with how many of its runs are in each state, and one for all if there are several."""
    counts: dict[str, Counter] = {}
    for row in rows:
        counts.setdefault(row["scale"], Counter())[row["state"]] += 1
    if len(counts) > 1:
        counts["all"] = sum(counts.values(), Counter())
    lines = [
        {"scale": scale, **{kind: str(own[kind] or "") for kind in Kind}, "runs": str(own.total())}
        for scale, own in counts.items()
    ]
    return _table("Runs by state", lines, left=("scale",))


def listed(rows: list[Row]) -> list[Row]:
    """The rows that a status lists: all, or of too many those that run, failed or are left out."""
    if len(rows) <= MOST_LINES:
        return rows
    return [row for row in rows if row["state"] == Kind.RUNNING or row["reason"]][:MOST_LINES]


def status_table(rows: list[Row]) -> Table:
    """A line for each run and its state."""
    lines = [
        {
            "run": row["name"],
            "settings": row["settings"],
            "id": row["id"],
            "state": row["state"],
            "steps": f"{row['steps']} of {row['last_step']}" if row["state"] == Kind.RUNNING else str(row["steps"]),
            "ms a step": _rounded(row.get("seconds_per_step"), 1000, ".3g"),
            "ends": (row.get("ends") or "")[11:16],
            "on": row.get("host") or row.get("launch") or "",
            "loss": _rounded(row.get("loss"), 1, ".4f"),
            "imbalance": _rounded(row.get("load_imbalance"), 1, ".2f"),
            "dead": _rounded(row.get("dead_experts"), 1, ".3g"),
            "dropped": _rounded(row.get("dropped_share"), 1, ".1%"),
            "reason": row["reason"] or "",
        }
        for row in rows
    ]
    return _table("Runs", lines, left=("run", "settings", "id", "state", "on", "reason"))


def _rounded(value: float | None, factor: float, form: str) -> str:
    return "" if value is None else format(factor * value, form)


def lines_table(title: str, lines: list[dict[str, str]]) -> Table:
    """A line for each of `lines`, whose keys are columns of text."""
    return _table(title, lines, left=tuple(lines[0]) if lines else ())


def plain_console(**settings: Any) -> Console:
    """A console that prints texts as they are: what errors and paths have in brackets is no markup."""
    return Console(markup=False, emoji=False, **settings)


def show(table: Table, console: Console) -> None:
    """Prints a table, as wide as it needs to be where the output is no terminal."""
    if not console.is_terminal:
        console = plain_console(file=console.file, width=max(console.width, 180))
    console.print(table)
