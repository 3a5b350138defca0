"""Rows of a grid's runs: states, losses, what is left out, and the tables they are written to."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest

from slicedice.grid.figures import AXES, MEASURES
from slicedice.launching.missing import to_train
from slicedice.report.results import Results, coordinates, read_results, settings, write_tables
from slicedice.spec import SCHEMA, run_name
from slicedice.store import Kind, Store
from tests import endings

MOE = {"model.experts": "n=8 k=4 g=1/4"}


def test_every_run_is_a_row_with_its_state(store: Store, plan_of, finish):
    plan = plan_of({}, MOE, *({"seed": seed} for seed in (1, 2, 3)))
    ids = list(plan.runs)
    finish(plan, 0, {"a": 1.0, "b": 3.0, "macro": 2.0})
    finish(plan, 1, kind=Kind.DIVERGED, steps=4)
    for i, kind in {2: Kind.CRASHED, 3: Kind.OUT_OF_MEMORY}.items():
        store.run(ids[i]).create(*plan.runs[ids[i]])
        endings.fail(store.run(ids[i]), kind, f"reason {i}")
    results = read_results(plan, store)
    assert [row["id"] for row in results.rows] == ids
    assert [row["name"] for row in results.rows] == [run_name(spec) for spec, _ in plan.runs.values()]
    assert [row["state"] for row in results.rows] == ["done", "diverged", "crashed", "out_of_memory", "missing"]
    assert [row["steps"] for row in results.rows] == [6, 4, 0, 0, 0]
    assert [row["reason"] for row in results.rows] == [None, None, "reason 2", "reason 3", None]
    assert [row.get("loss") for row in results.rows] == [2.0, None, None, None, None]
    assert results.notes == []
    # JSON knows nothing of enums' subclasses or numpy: what `--json` prints has to be plain.
    assert all(type(row["state"]) is str for row in results.rows)


def test_measurements_keep_their_meaning(store: Store, plan_of, finish, content):
    plan = plan_of({**MOE, "router.kind": "default"})
    evaluation = content({"a": 1.0, "b": 3.0, "macro": 2.0})["evaluation"]
    evaluation["without_capacity"] = content({"a": 0.5, "b": 1.5, "macro": 1.0})["evaluation"]["held_out"]
    train = {
        "loss": 9.0,
        "cross_entropy": 2.25,
        "load_balancing_loss": 1.5,
        "load_imbalance": 1.75,
        "dropped_share": 0.125,
        "dead_experts": 3.0,
    }
    finish(plan, 0, evaluation=evaluation, train=train, seconds_per_step=0.75)
    (row,) = read_results(plan, store).rows
    expected = {
        "loss": 2.0,
        "loss_a": 1.0,
        "loss_b": 3.0,
        "bits_per_byte": 4.0,
        "bits_per_byte_a": 2.0,
        "without_capacity_loss": 1.0,
        "without_capacity_loss_b": 1.5,
        "without_capacity_bits_per_byte_b": 3.0,
        "train_loss": 2.25,
        "load_balancing_loss": 1.5,
        "load_imbalance": 1.75,
        "dropped_share": 0.125,
        "dead_experts": 3.0,
        "seconds_per_step": 0.75,
        "data_fingerprint": "f" * 12,
        "device": "a device",
    }
    assert {name: row[name] for name in expected} == expected


def test_runs_on_other_text_are_left_out_and_named(store: Store, plan_of, finish):
    plan = plan_of(*({**MOE, "seed": seed} for seed in range(5)))
    for i, fingerprint in enumerate(["odd", "most", "most", "other"]):
        finish(plan, i, {"a": 1.0, "macro": 1.0}, fingerprint=fingerprint)
    results = read_results(plan, store)
    # The last one has no result: nothing is known against it.
    assert [row["seed"] for row in results.rows] == [1, 2, 4]
    (note,) = results.notes
    names = [run_name(spec) for spec, _ in plan.runs.values()]
    assert [name in note for name in names] == [True, False, False, True, False]
    assert "other text" in note
    assert "fingerprint is most" in note
    # They are known, without what they measured.
    assert [(row["seed"], row["state"], row.get("loss")) for row in results.on_other_text] == [
        (0, "done", None),
        (3, "done", None),
    ]
    assert all(row["reason"] in note for row in results.on_other_text)
    assert [row["reason"] for row in results.rows] == [None] * 3


def test_coordinates_of_a_dense_and_of_a_mixed_layer(tiny):
    dense, _ = tiny()
    row = coordinates(dense)
    assert (row["dense"], row["n"], row["k"], row["g"], row["s"], row["granularity"]) == (True, 1, 1, 1.0, 1.0, "1")
    assert (row["generalist"], row["router"], row["alpha"]) == (None, None, None)
    # 3 of 8 quarter experts, and a quarter that is always on; then two sets whose k*g are 3/4 and 1/4.
    general, _ = tiny({"model.experts": "n=8 k=3 g=1/4", "model.generalist": "1/4"})
    row = coordinates(general)
    assert (row["dense"], row["n"], row["k"], row["s"], row["generalist"]) == (False, 8, 3, 2.25, 0.25)
    mixed, _ = tiny({"model.experts": "n=4 k=3 g=1/4 + n=8 k=2 g=1/8"})
    row = coordinates(mixed)
    assert (row["n"], row["k"], row["g"], row["s"], row["granularity"]) == (12, 5, 0.125, 2.0, "1/4+1/8")
    assert row["total_parameters"] == mixed.model.parameters()
    assert row["active_parameters"] == mixed.model.parameters(active=True)


def table_of(rng: np.random.Generator, row_of) -> Results:
    losses = rng.normal(size=3)
    rows = [row_of({**MOE, "seed": seed}, loss=float(loss)) for seed, loss in enumerate(losses)]
    rows.append(row_of({}, loss=1.5, loss_a=1.0))
    rows.append(row_of({**MOE, "router.alpha": 0.5}, state="crashed", reason='OSError: "a, b"\nand ä'))
    return Results(rows, [])


def test_parquet_has_every_row_with_every_column(tmp_path: Path, rng, row_of):
    results = table_of(rng, row_of)
    write_tables(results, tmp_path / "deep")
    read = pyarrow.parquet.read_table(tmp_path / "deep" / "results.parquet").to_pylist()
    columns = {name for row in results.rows for name in row}
    assert read == [{name: row.get(name) for name in columns} for row in results.rows]


def test_csv_has_every_row_with_every_column(tmp_path: Path, rng, row_of):
    results = table_of(rng, row_of)
    write_tables(results, tmp_path)
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    # A column without values is read as one of its type all the same.
    conversion = pyarrow.csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
    table = pyarrow.csv.read_csv(tmp_path / "results.csv", parse_options=options, convert_options=conversion)
    read = table.to_pylist()
    columns = {name for row in results.rows for name in row}
    assert set(table.column_names) == columns
    for row, back in zip(results.rows, read, strict=True):
        for name in columns:
            expected = row.get(name)
            if isinstance(expected, str) and not isinstance(back[name], str):
                expected = type(back[name])(expected)  # "1" among granularities, or digits of an id
            assert back[name] == expected, name


def test_tables_of_a_sweep_that_has_not_begun(tmp_path: Path, store: Store, plan_of):
    results = read_results(plan_of(MOE, {}), store)
    write_tables(results, tmp_path)
    read = pyarrow.parquet.read_table(tmp_path / "results.parquet").to_pylist()
    assert [row["state"] for row in read] == ["missing", "missing"]
    assert (tmp_path / "results.csv").read_text().count("\n") == 3


def test_a_diverged_run_keeps_what_is_known_of_it(store: Store, plan_of, finish):
    plan = plan_of(MOE)
    finish(plan, 0, kind=Kind.DIVERGED, steps=3, train={"cross_entropy": math.nan}, seconds_per_step=None)
    (row,) = read_results(plan, store).rows
    assert row["state"] == "diverged"
    assert row["train_loss"] is None  # what is not finite is no measurement
    assert row["seconds_per_step"] is None
    assert "loss" not in row


@pytest.mark.parametrize("torn", ['{"schema": 1, "kind": "done", "st', ""])
def test_a_torn_result_is_no_row_with_numbers(store: Store, plan_of, finish, torn: str):
    plan = plan_of(MOE)
    id_ = finish(plan, 0, {"a": 1.0, "macro": 1.0})
    (store.run(id_).path / "result.json").write_text(torn)
    (row,) = read_results(plan, store).rows
    assert row["state"] == "missing"
    assert "loss" not in row


def test_a_generalist_and_its_wiring_are_told_where_they_vary(plan_of):
    point = {"model.experts": "n=6 k=2 g=1/4", "model.generalist": "1/2"}
    plan = plan_of({}, *({**point, "model.wiring": wiring} for wiring in ("parallel", "plain")))
    assert list(settings(plan.runs).values()) == ["", "wiring=parallel", "wiring=plain"]
    plan = plan_of({}, {"model.experts": "n=8 g=1/4"}, point)
    assert list(settings(plan.runs).values()) == ["", "", "generalist=1/2 wiring=parallel"]


def test_every_axis_and_measure_of_a_figure_is_a_column(store: Store, plan_of, finish, content):
    plan = plan_of({"model.experts": "n=8 g=1/4", "router.kind": "default"})
    scores = {"macro": {"nats": 2.0, "bits_per_byte": 1.0, "targets": 5}}
    train = {**content()["train"], "load_balancing_loss": 1.0}
    finish(plan, 0, train=train, evaluation={"held_out": scores, "without_capacity": scores})
    (row,) = read_results(plan, store).rows
    assert all(isinstance(row[name], (int, float)) for name in (*AXES, *MEASURES))


def test_what_makes_a_scale_is_not_named_beside_it(plan_of):
    big = {"scale": "big", "model.d_model": 32, "budget.tokens": 12 * 8 * 16, "optimizer.weight_decay": 0.5}
    layers = ({}, MOE, {**MOE, "router.alpha": 0.5})
    plan = plan_of(*({**scale, **layer} for scale in ({}, big) for layer in layers))
    assert list(settings(plan.runs).values()) == ["", "alpha=0.01", "alpha=0.5"] * 2
    # What varies within any of the scales is named in all.
    rates = ({}, {"optimizer.learning_rate": 0.5})
    plan = plan_of(*({**scale, **rate} for scale, rate in ((big, {}), *(({}, rate) for rate in rates))))
    usual = next(iter(plan.runs.values()))[0].optimizer.learning_rate
    assert list(settings(plan.runs).values()) == [f"learning_rate={rate}" for rate in (usual, usual, 0.5)]
    # Within one scale all that varies is.
    other = {name: value for name, value in big.items() if name != "scale"}
    assert list(settings(plan_of({}, other).runs).values()) == [
        "d_model=16 d_ff=64 weight_decay=0.1 steps=6",
        "d_model=32 d_ff=128 weight_decay=0.5 steps=12",
    ]


def test_having_a_generalist_or_none_is_told_at_several_scales_too(plan_of):
    layers = ({"model.experts": "n=8 g=1/4"}, {"model.experts": "n=6 k=2 g=1/4", "model.generalist": "1/2"})
    plan = plan_of(*({**scale, **layer} for scale in ({}, {"scale": "big", "model.d_model": 32}) for layer in layers))
    assert list(settings(plan.runs).values()) == ["", "generalist=1/2 wiring=parallel"] * 2


def test_a_row_says_of_which_kind_its_layer_is(tiny):
    told = {
        "dense": ("dense", None),
        "n=1 g=1": ("dense", None),
        "n=8 g=1/4": ("homogeneous", "alpha 0.5, gamma 0.001"),
        "n=4 g=1/4": ("homogeneous", None),  # all are on: there is nothing to balance
        "n=4 k=1 g=1/2 + n=8 k=2 g=1/4": ("heterogeneous", "alpha 0.5, gamma 0.001"),
    }
    for experts, (kind, balancing) in told.items():
        spec, _ = tiny({"model.experts": experts, "router.alpha": 0.5, "router.gamma": 0.001})
        row = coordinates(spec)
        assert (row["kind"], row["balancing"], row["compute_dtype"]) == (kind, balancing, "float32")
    general, _ = tiny({"model.experts": "n=6 k=2 g=1/4", "model.generalist": "1/2", "compute_dtype": "bfloat16"})
    row = coordinates(general)
    assert (row["kind"], row["compute_dtype"]) == ("homogeneous", "bfloat16")


def test_what_has_no_capacity_is_evaluated_without_one(store: Store, plan_of, finish, content):
    experts = {"model.experts": "n=8 g=1/4"}
    plan = plan_of({}, experts, {**experts, "router.kind": "default"}, {**experts, "router.kind": "default", "seed": 1})
    for i in (0, 1, 3):
        finish(plan, i, {"a": 1.0 + i, "macro": 2.0 + i})
    evaluation = content({"a": 5.0, "macro": 6.0})["evaluation"]
    free = content({"a": 7.0, "macro": 8.0})["evaluation"]["held_out"]
    finish(plan, 2, evaluation={**evaluation, "without_capacity": free})
    rows = read_results(plan, store).rows
    assert [row["loss"] for row in rows] == [2.0, 3.0, 6.0, 5.0]
    # Of the last it is not known: its loss is with the capacity.
    assert [row.get("without_capacity_loss") for row in rows] == [2.0, 3.0, 8.0, None]
    assert [row.get("without_capacity_loss_a") for row in rows] == [1.0, 2.0, 7.0, None]
    assert [row.get("without_capacity_bits_per_byte") for row in rows] == [4.0, 6.0, 16.0, None]


def damage(store: Store, id_: str, **changes) -> None:
    """Rewrites a result with some of its keys replaced, or left out where they are None."""
    path = store.run(id_).path / "result.json"
    result = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in result.items() if value is not None}))


SCORES = {"nats": 1.0, "bits_per_byte": 1.0}
DAMAGE = [
    *({key: None} for key in ("train", "evaluation", "provenance", "seconds_per_step")),
    {"provenance": {"device": "a device"}},
    {"train": [1.0]},
    {"provenance": {"data_fingerprint": ["f"], "device": "d", "git_revision": None, "finished": "now"}},
    {"provenance": {"data_fingerprint": "f", "device": 3, "git_revision": None, "finished": "now"}},
    {"train": {"cross_entropy": "2.5"}},
    {"train": {"dead_experts": 10**400}},
    {"seconds_per_step": True},
    {"evaluation": {}},
    {"evaluation": {"held_out": {"macro": {"nats": math.nan, "bits_per_byte": 1.0}}}},
    {"evaluation": {"held_out": {"macro": {"nats": "1.0", "bits_per_byte": 1.0}}}},
    {"evaluation": {"held_out": {"macro": {"nats": 1.0}}}},
    {"evaluation": {"held_out": {"macro": 1.0}}},
    {"evaluation": {"held_out": [SCORES]}},
]


@pytest.mark.parametrize("changes", DAMAGE, ids=str)
def test_a_result_that_lacks_something_is_left_out_and_named(store: Store, plan_of, finish, changes):
    plan = plan_of(MOE, {**MOE, "seed": 1})
    for i in range(2):
        finish(plan, i, {"a": 1.0, "macro": 1.0})
    damage(store, next(iter(plan.runs)), **changes)
    results = read_results(plan, store)
    bad, good = results.rows
    assert (bad["state"], bad["steps"], bad.get("loss"), good["loss"]) == ("done", 6, None, 1.0)
    assert bad["reason"].startswith("its result.json is damaged: ")
    (note,) = results.notes
    assert bad["reason"] in note
    assert [row["name"] in note for row in results.rows] == [True, False]


def test_what_was_not_finite_in_one_place_leaves_the_rest(store: Store, plan_of, finish):
    plan = plan_of(MOE)
    id_ = finish(plan, 0, {"a": 1.0, "macro": 1.5})
    scores = {"a": {"nats": math.inf, "bits_per_byte": 1.0}, "macro": {"nats": 1.5, "bits_per_byte": 2.0}}
    damage(store, id_, train={"cross_entropy": math.nan, "load_imbalance": 1.25}, evaluation={"held_out": scores})
    results = read_results(plan, store)
    (row,) = results.rows
    assert (row["loss"], row["bits_per_byte"], row["load_imbalance"]) == (1.5, 2.0, 1.25)
    assert (row["loss_a"], row["train_loss"], row["reason"], results.notes) == (None, None, None, [])


def test_runs_of_one_name_are_counted_one_by_one(store: Store, plan_of, finish):
    plan = plan_of(*({**MOE, "optimizer.learning_rate": rate} for rate in (0.25, 0.5, 0.75)))
    for i in range(3):
        damage(store, finish(plan, i, {"macro": 1.0}), schema=SCHEMA + 1)
    (note,) = read_results(plan, store).notes
    assert note.count(run_name(next(iter(plan.runs.values()))[0])) == 3


@pytest.mark.parametrize("changes", [DAMAGE[0], DAMAGE[-1]], ids=str)
def test_a_sweep_trains_what_a_report_calls_missing(store: Store, plan_of, finish, changes):
    plan = plan_of(MOE)
    id_ = finish(plan, 0, {"a": 1.0, "macro": 1.0})
    damage(store, id_, **changes)
    (row,) = read_results(plan, store).rows
    assert (to_train(plan, store, retry=False) == [id_]) is (row["state"] == "missing")


def test_unreadable_results_are_named_by_what_ails_them_in_the_plans_order(store: Store, plan_of, finish):
    plan = plan_of(*({**MOE, "seed": seed} for seed in range(11)))
    ids = [finish(plan, i, {"a": 1.0, "macro": 1.0}) for i in range(11)]
    names = [run_name(spec) for spec, _ in plan.runs.values()]
    for i in (8, 0, 1, 3, 4, 6, 7):
        damage(store, ids[i], schema=SCHEMA + 1)
    damage(store, ids[2], schema="older")
    (store.run(ids[5]).path / "result.json").write_text('{"schema": 1, "kind"')
    damage(store, ids[9], kind="crashed")
    results = read_results(plan, store)
    assert [row["state"] for row in results.rows] == ["missing"] * 10 + ["done"]
    newer, older, torn, odd = results.notes
    assert f"it is of schema {SCHEMA + 1}, and this version reads {SCHEMA}" in newer
    # The first five, and how many more.
    assert newer.endswith(", ".join(names[i] for i in (0, 1, 3, 4, 6)) + " and 2 more")
    assert "schema 'older'" in older
    assert older.endswith(f": {names[2]}")
    assert "it is damaged" in torn
    assert torn.endswith(f": {names[5]}")
    assert "'crashed'" in odd
    assert odd.endswith(f": {names[9]}")


def test_an_unreadable_result_does_not_hide_how_a_run_failed_since(store: Store, plan_of, finish):
    plan = plan_of(MOE, {**MOE, "seed": 1})
    ids = [finish(plan, i, {"a": 1.0, "macro": 1.0}) for i in range(2)]
    for id_ in ids:
        damage(store, id_, schema=SCHEMA + 1)
    endings.fail(store.run(ids[0]), Kind.CRASHED, "no disk")
    results = read_results(plan, store)
    assert [row["state"] for row in results.rows] == ["crashed", "missing"]
    assert results.rows[0]["reason"] == "no disk"
    (note,) = results.notes
    assert results.rows[1]["name"] in note
