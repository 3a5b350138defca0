"""A grid's runs as rows of a table: coordinates, state, losses. What cannot be read is named, never guessed."""

import dataclasses
import io
import math
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from slicedice.grid import Plan
from slicedice.spec import LayerSpec, RouterSpec, RunSpec, run_id, run_name
from slicedice.spec.identity import to_dict
from slicedice.store import Store
from slicedice.store.files import write_whole

Row = dict[str, Any]

TRAIN = {
    "train_loss": "cross_entropy",
    "load_balancing_loss": "load_balancing_loss",
    "load_imbalance": "load_imbalance",
    "dropped_share": "dropped_share",
    "dead_experts": "dead_experts",
}
"""Columns that are means over the last 50 steps, with their name among the metrics."""


@dataclass(frozen=True)
class Results:
    """Rows of all runs, in training order, and sentences on what was left out of them."""

    rows: list[Row]
    notes: list[str]


def coordinates(spec: RunSpec) -> Row:
    """Where a run lies: what varies between runs and can be an axis, a hue or a filter."""
    layer, router = spec.model.layer, spec.router
    return {
        "cell": run_id(dataclasses.replace(spec, seed=0)),  # shared by runs that differ only in their seed
        "beside": run_id(_dense(spec)),  # shared by runs that differ only in layer, router and seed
        "batches": " ".join(
            str(x) for x in (*dataclasses.astuple(spec.data), spec.budget.batch_size)
        ),  # read by a seed
        "scale": spec.scale,
        "seed": spec.seed,
        "dense": layer.is_dense,
        "n": layer.count,
        "k": layer.active,
        "g": float(layer.granularity),
        "granularity": "+".join(str(e.g) for e in layer.experts) or "1",
        "s": float(layer.sparsity),
        "generalist": float(layer.generalist) if layer.generalist and not layer.is_dense else None,
        "wiring": layer.wiring,
        "router": router.kind,
        "alpha": router.alpha,
        "gamma": router.gamma,
        "learning_rate": spec.optimizer.learning_rate,
        "tokens": spec.tokens,
        "total_parameters": spec.model.parameters(),
        "active_parameters": spec.model.parameters(active=True),
        "flops": spec.flops,
    }


def _dense(spec: RunSpec) -> RunSpec:
    dense = dataclasses.replace(spec.model, layer=LayerSpec((), Fraction(1)))
    return dataclasses.replace(spec, seed=0, model=dense, router=RouterSpec(None, None, None, None, None, None))


def settings(plan: Plan) -> dict[str, str]:
    """For each run, by id, the fields that vary over the plan and that no column of its own shows."""
    flat = {id_: _flat(to_dict(spec)) for id_, (spec, _) in plan.runs.items()}
    layers = ("model.layer.generalist", "model.layer.wiring")
    for fields in flat.values():
        if fields["router.kind"] is None:  # dense: an always-on expert is no generalist
            for name in layers:
                fields.pop(name, None)
    shown = {"scale", "seed", "router.kind", "model.layer.experts"}
    values: dict[str, set] = {}
    for fields in flat.values():
        for name, value in fields.items():
            # What is None has no effect, so it makes no difference; but to have no generalist does.
            if name not in shown and (value is not None or name in layers):
                values.setdefault(name, set()).add(value)
    varied = [name for name, found in values.items() if len(found) > 1]
    return {
        id_: " ".join(f"{name.split('.')[-1]}={fields[name]}" for name in varied if fields.get(name) is not None)
        for id_, fields in flat.items()
    }


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            leaves |= _flat(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = str(value) if isinstance(value, list) else value
    return leaves


def read_results(plan: Plan, store: Store) -> Results:
    """Reads the state and result of every run of `plan`.

    Runs trained on other text than most are left out, since their losses do not compare.
    """
    rows, fingerprints, varied = [], Counter(), settings(plan)
    for id_, (spec, _) in plan.runs.items():
        folder = store.run(id_)
        state = folder.state()
        row: Row = {"id": id_, "name": run_name(spec), **coordinates(spec), "settings": varied[id_]}
        row |= {"state": str(state.kind), "steps": state.steps, "reason": state.reason or None}
        result = folder.result()
        if result:
            row |= _measured(result)
            fingerprints[row["data_fingerprint"]] += 1
        rows.append(row)
    notes = []
    if len(fingerprints) > 1:
        kept, _ = fingerprints.most_common(1)[0]
        foreign = [row for row in rows if row.get("data_fingerprint") not in (None, kept)]
        rows = [row for row in rows if row.get("data_fingerprint") in (None, kept)]
        notes.append(
            f"{len(foreign)} runs were trained on other text (fingerprint not {kept}) and are left out: "
            + ", ".join(row["name"] for row in foreign[:5])
            + ("…" if len(foreign) > 5 else "")
        )
    return Results(rows, notes)


def _measured(result: dict[str, Any]) -> Row:
    train, evaluation, origin = result["train"], result["evaluation"], result["provenance"]
    row: Row = {column: train.get(metric) for column, metric in TRAIN.items()}
    for name, prefix in (("held_out", ""), ("without_capacity", "without_capacity_")):
        for domain, score in evaluation.get(name, {}).items():
            suffix = "" if domain == "macro" else f"_{domain}"
            row[f"{prefix}loss{suffix}"] = score["nats"]
            row[f"{prefix}bits_per_byte{suffix}"] = score["bits_per_byte"]
    row["seconds_per_step"] = result["seconds_per_step"]
    row |= {key: origin[key] for key in ("data_fingerprint", "device", "git_revision", "finished")}
    # What is not a finite number is no measurement, and nothing that JSON could say.
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}


def write_tables(results: Results, folder: Path) -> None:
    """Writes `results.parquet` and `results.csv`, every row with every column."""
    columns = list(dict.fromkeys(name for row in results.rows for name in row))
    table = pa.table({name: [row.get(name) for row in results.rows] for name in columns})
    for name, write in (
        ("results.parquet", pyarrow.parquet.write_table),
        ("results.csv", pyarrow.csv.write_csv),
    ):
        content = io.BytesIO()
        write(table, content)
        write_whole(folder / name, content.getvalue())
