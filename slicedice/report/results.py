"""A grid's runs as rows of a table: coordinates, state, losses. What cannot be used is named, never guessed."""

import dataclasses
import functools
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from slicedice.grid import Plan
from slicedice.report.evaluations import incomplete, read_evaluations
from slicedice.report.measurements import number, text
from slicedice.spec import LayerSpec, RouterSpec, RunSpec, run_id, run_name
from slicedice.spec.identity import flat
from slicedice.store import Kind, Store
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

COMPILATION = {"steps_compiled": "steps", "steps_from_cache": "steps_from_cache", "compile_seconds": "seconds"}
"""Columns of what a run's process compiled for it, with their name in the result; a program's first run pays."""

FIELDS = {
    "tokens": ("budget.steps",),
    "learning_rate": ("optimizer.learning_rate",),
    "generalist": ("model.layer.generalist",),
    "wiring": ("model.layer.wiring",),
    "balancing": ("router.alpha", "router.gamma"),
}
"""Fields of a spec that a coordinate shows, where they are called otherwise."""


DAMAGED = ("its result.json", "its spec.json")
"""How the reasons begin for which what a run's folder holds cannot be used."""


@dataclass(frozen=True)
class Results:
    """What the store knows of a plan's runs.

    rows: of all runs but those that were trained on other text than most, in training order.
    notes: sentences on what cannot be used, compared or read.
    on_other_text: rows of the runs that were, without what they measured.
    """

    rows: list[Row]
    notes: list[str]
    on_other_text: list[Row] = field(default_factory=list)


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
    """Reads the state and result of every run of `plan`; what cannot be used is left out and named in a note.

    Runs trained on other text than most of their plan are left out, since their losses do not compare.
    """
    rows, measured, varied = [], {}, settings(plan.runs)
    looks = store.look(plan.runs)
    done = [id_ for id_, (state, result) in looks.items() if result and state.kind is Kind.DONE]
    evaluated = store.evaluations(done)
    for id_, (spec, _) in plan.runs.items():
        state, result = looks[id_]
        row: Row = {"id": id_, "name": run_name(spec), **coordinates(spec), "settings": varied[id_]}
        row |= {"state": str(state.kind), "steps": state.steps, "reason": state.reason or None}
        if result:
            try:
                measured[id_] = _measured(result, row["router"])
            except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
                what = f"its result.json is damaged: {type(error).__name__} {error}"
                row["reason"] = f"{what}; remove the run's folder to train it anew"
        rows.append(row)
    notes = _notes("Left out", ((r["name"], r["reason"]) for r in rows if (r["reason"] or "").startswith(DAMAGED)))
    rows, foreign = _on_one_text(rows, measured)
    left_out, lacking = list(read_evaluations(rows, evaluated)), incomplete(rows, evaluated)
    notes += _notes("Left out", ((row["name"], row["reason"]) for row in foreign))
    notes += _notes("In the store, but no run", store.strays(plan.runs).items())
    return Results(
        rows, notes + _notes("Left out", left_out) + _notes("Evaluated in part", lacking) + _on_dtypes(plan), foreign
    )


def _on_one_text(rows: list[Row], measured: dict[str, Row]) -> tuple[list[Row], list[Row]]:
    """Rows with what was measured, and those of runs on other text than most without it."""
    fingerprints = Counter(own["data_fingerprint"] for own in measured.values())
    most = max(fingerprints, key=fingerprints.__getitem__, default="")
    kept, foreign = [], []
    for row in rows:
        own = measured.get(row["id"], {})
        if own.get("data_fingerprint", most) == most:
            kept.append(row | own)
        else:
            why = f"it was trained on other text than most runs here (whose text's fingerprint is {most})"
            foreign.append(row | {"reason": why})
    return kept, foreign


def _notes(what: str, reasons: Iterable[tuple[str, str]]) -> list[str]:
    """From names with reasons a sentence for each reason, which names a few."""
    names: dict[str, list[str]] = {}
    for name, why in reasons:
        names.setdefault(why, []).append(name)
    return [
        f"{what}, {why}: " + ", ".join(own[:5]) + (f" and {len(own) - 5} more" if len(own) > 5 else "")
        for why, own in names.items()
    ]


def _on_dtypes(plan: Plan) -> list[str]:
    """A sentence where runs compute in different dtypes, which makes their losses differ too."""
    scales: dict[str, dict[str, None]] = {}
    for spec, _ in plan.runs.values():
        scales.setdefault(spec.compute_dtype, {})[spec.scale] = None
    told = "; ".join(f"{dtype} at {', '.join(names)}" for dtype, names in scales.items())
    return [f"Losses of different compute dtypes are not compared: {told}"] if len(scales) > 1 else []


def _measured(result: dict[str, Any], router: str | None) -> Row:
    """What a result has measured, as columns.

    Raises:
      KeyError, TypeError, AttributeError, ValueError, OverflowError: it lacks something, or that is not what it was.
    """
    train, evaluation, origin = result["train"], result["evaluation"], result["provenance"]
    row: Row = {column: number(train.get(metric)) for column, metric in TRAIN.items()}
    # What has no capacity is evaluated without one.
    free = "without_capacity" if router == "default" else "held_out"
    for name, prefix in (("held_out", ""), (free, "without_capacity_")):
        for domain, score in evaluation.get(name, {}).items():
            suffix = "" if domain == "macro" else f"_{domain}"
            row[f"{prefix}loss{suffix}"] = number(score["nats"])
            row[f"{prefix}bits_per_byte{suffix}"] = number(score["bits_per_byte"])
    if result["kind"] == Kind.DONE and row.get("loss") is None:
        raise ValueError("it has no finite held-out loss")  # such a run has diverged, and says so
    row["seconds_per_step"] = number(result["seconds_per_step"])
    row["lanes"] = number(result.get("lanes"))
    compilation = result.get("compilation") or {}
    row |= {column: number(compilation.get(name)) for column, name in COMPILATION.items()}
    return row | {key: text(origin[key]) for key in ("data_fingerprint", "device", "git_revision", "finished")}


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
