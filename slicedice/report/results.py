"""A grid's runs as rows of a table: coordinates, state, losses. What cannot be read is named, never guessed."""

import dataclasses
import functools
import io
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from slicedice.grid import Plan
from slicedice.spec import LayerSpec, RouterSpec, RunSpec, run_id, run_name
from slicedice.spec.identity import flat
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

FIELDS = {
    "tokens": ("budget.steps",),
    "learning_rate": ("optimizer.learning_rate",),
    "generalist": ("model.layer.generalist",),
    "wiring": ("model.layer.wiring",),
    "balancing": ("router.alpha", "router.gamma"),
}
"""Fields of a spec that a coordinate shows, where they are called otherwise."""


@dataclass(frozen=True)
class Results:
    """Rows of all runs, in training order, and sentences on what was left out of them."""

    rows: list[Row]
    notes: list[str]


def coordinates(spec: RunSpec) -> Row:
    """Where a run lies: what varies between runs and can be an axis, a hue or a filter."""
    layer, router = spec.model.layer, spec.router
    balanced = router.alpha is not None
    return {
        "cell": run_id(dataclasses.replace(spec, seed=0)),  # shared by runs that differ only in their seed
        "beside": _dense_id(_dense(spec)),  # shared by runs that differ only in layer, router and seed
        "batches": " ".join(
            str(x) for x in (*dataclasses.astuple(spec.data), spec.budget.batch_size)
        ),  # read by a seed
        "scale": spec.scale,
        "seed": spec.seed,
        "dense": layer.is_dense,
        "kind": "dense" if layer.is_dense else "homogeneous" if len(layer.experts) == 1 else "heterogeneous",
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
        "routing": f"{router.capacity_factor} {router.z_loss} {router.group}",
        "balancing": f"alpha {router.alpha:g}, gamma {router.gamma:g}" if balanced else None,
        "learning_rate": spec.optimizer.learning_rate,
        "tokens": spec.tokens,
        "compute_dtype": spec.compute_dtype,
        "total_parameters": spec.model.parameters(),
        "active_parameters": spec.model.parameters(active=True),
        "flops": float(spec.flops),  # past what columns of 64-bit whole numbers hold
    }


def _dense(spec: RunSpec) -> RunSpec:
    dense = dataclasses.replace(spec.model, layer=LayerSpec((), Fraction(1)))
    return dataclasses.replace(spec, seed=0, model=dense, router=RouterSpec(None, None, None, None, None, None))


_dense_id = functools.lru_cache(maxsize=1024)(run_id)


def settings(runs: Mapping[str, tuple[RunSpec, Any]]) -> dict[str, str]:
    """For each run, by id, the fields that vary over `runs` and that no column of its own shows."""
    fields_of = {id_: flat(spec) for id_, (spec, _) in runs.items()}
    layers = ("model.layer.generalist", "model.layer.wiring")
    for id_, (spec, _) in runs.items():
        if spec.router.kind is None:  # dense: an always-on expert is no generalist
            for name in layers:
                fields_of[id_].pop(name, None)
    hidden = {"seed", "router.kind", "model.layer.experts"}
    values: dict[str, set] = {}
    for fields in fields_of.values():
        for name, value in fields.items():
            # What is None has no effect, so it makes no difference; but to have no generalist does.
            if name not in hidden and (value is not None or name in layers):
                values.setdefault(name, set()).add(value)
    varied = [name for name, found in values.items() if len(found) > 1]
    # A scale's label stands for all that makes it.
    if "scale" in varied:
        varied = [
            name for name in varied if name != "scale" and (name in layers or not _follows_scale(name, fields_of))
        ]
    return {
        id_: " ".join(f"{name.split('.')[-1]}={fields[name]}" for name in varied if fields.get(name) is not None)
        for id_, fields in fields_of.items()
    }


def _follows_scale(name: str, flat: dict[str, dict[str, Any]]) -> bool:
    """Whether a field has one value in each scale."""
    values: dict[str, set] = {}
    for fields in flat.values():
        if fields.get(name) is not None:
            values.setdefault(fields["scale"], set()).add(fields[name])
    return all(len(found) == 1 for found in values.values())


def read_results(plan: Plan, store: Store) -> Results:
    """Reads the state and result of every run of `plan`; what cannot be read is left out and named in a note.

    Runs trained on other text than most of their plan are left out, since their losses do not compare.
    """
    rows, varied = [], settings(plan.runs)
    unreadable: dict[str, str] = {}
    for id_, (spec, _) in plan.runs.items():
        state, result = store.run(id_).look()
        row: Row = {"id": id_, "name": run_name(spec), **coordinates(spec), "settings": varied[id_]}
        row |= {"state": str(state.kind), "steps": state.steps, "reason": state.reason or None}
        if result:
            try:
                row |= _measured(result, row["router"])
            except (KeyError, TypeError, AttributeError) as error:
                what = f"its result.json is damaged: {type(error).__name__} {error}"
                row["reason"] = f"{what}; remove the run's folder to train it anew"
        if row["reason"] and row["reason"].startswith("its result.json"):
            unreadable[row["name"]] = row["reason"]
        rows.append(row)
    whys = dict.fromkeys(unreadable.values())
    notes = [_note(f"Left out, {why}", [name for name, own in unreadable.items() if own == why]) for why in whys]
    rows, foreign = _on_one_text(rows)
    return Results(rows, notes + foreign)


def _on_one_text(rows: list[Row]) -> tuple[list[Row], list[str]]:
    fingerprints = Counter(row["data_fingerprint"] for row in rows if row.get("data_fingerprint"))
    if len(fingerprints) < 2:
        return rows, []
    kept, _ = fingerprints.most_common(1)[0]
    foreign = [row["name"] for row in rows if row.get("data_fingerprint") not in (None, kept)]
    why = f"{len(foreign)} runs were trained on other text (fingerprint not {kept}) and are left out"
    return [row for row in rows if row.get("data_fingerprint") in (None, kept)], [_note(why, foreign)]


def _note(what: str, names: list[str]) -> str:
    """A sentence on some runs, a few of which it names."""
    return f"{what}: " + ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _measured(result: dict[str, Any], router: str | None) -> Row:
    train, evaluation, origin = result["train"], result["evaluation"], result["provenance"]
    row: Row = {column: train.get(metric) for column, metric in TRAIN.items()}
    # What has no capacity is evaluated without one.
    free = "without_capacity" if router == "default" else "held_out"
    for name, prefix in (("held_out", ""), (free, "without_capacity_")):
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
    import pyarrow as pa  # here, since whoever asks for a status need not wait for it
    import pyarrow.csv
    import pyarrow.parquet

    columns = list(dict.fromkeys(name for row in results.rows for name in row))
    table = pa.table({name: [row.get(name) for row in results.rows] for name in columns})
    for name, write in (
        ("results.parquet", pyarrow.parquet.write_table),
        ("results.csv", pyarrow.csv.write_csv),
    ):
        content = io.BytesIO()
        write(table, content)
        write_whole(folder / name, content.getvalue())
