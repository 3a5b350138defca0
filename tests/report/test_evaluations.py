"""Evaluations as columns: which name means what, what compares, and what is left out, named."""

from typing import Any

import pytest

from slicedice.grid import Figure, Panel
from slicedice.report.captions import label
from slicedice.report.report import EVALUATION_SETS, write_report
from slicedice.report.results import read_results
from slicedice.spec import run_name
from slicedice.store import Kind
from tests.report.test_report import files

MOE = {"model.experts": "n=8 k=4 g=1/4"}
DEFAULT = {**MOE, "router.kind": "default"}


def documents(value: float = 1.0, fingerprint: str = "f", **more: Any) -> dict[str, Any]:
    """What an evaluation on a collection of one domain, x, writes."""
    score = {"nats": value, "bits_per_byte": 2 * value, "targets": 3, "documents": 1}
    scores = {"as_trained": {"x": {**score, "nats": value + 1}, "macro": score}}
    settings = {"window": 16, "stride": 16}
    return {
        "kind": "documents",
        "settings": settings,
        "scores": scores,
        "fingerprint": fingerprint,
        "missing": [],
        **more,
    }


def tasks(*groups: str, value: float = 0.5) -> dict[str, Any]:
    score = {"nats": 3 * value, "bits_per_byte": value, "accuracy": value, "accuracy_normalised": 2 * value}
    scores = {"as_trained": {group: {**score, "truncated": 0.0, "questions": 4} for group in groups}}
    return {
        "kind": "tasks",
        "settings": {"window": 16, "shots": 5},
        "scores": scores,
        "fingerprint": "q",
        "missing": [],
    }


def test_columns_of_a_collection_and_of_tasks(store, plan_of, finish):
    plan = plan_of(MOE)
    folder = store.run(finish(plan, 0, {"a": 1.0, "macro": 1.0}))
    folder.write_evaluation("paloma", documents())
    folder.write_evaluation("hellaswag", tasks("hellaswag"))
    folder.write_evaluation("mmlu", tasks("mmlu_stem", "mmlu", value=0.25))
    folder.write_evaluation("held_out", {**documents(), "kind": "held_out"})
    results = read_results(plan, store)
    (row,) = results.rows
    expected = {
        "loss": 1.0,
        "loss_a": 1.0,
        "loss_paloma": 1.0,
        "loss_paloma.x": 2.0,
        "bits_per_byte_paloma": 2.0,
        "accuracy_hellaswag": 0.5,
        "accuracy_normalised_hellaswag": 1.0,
        "loss_hellaswag": 1.5,
        "accuracy_mmlu_stem": 0.25,
        "loss_mmlu": 0.75,
        # What has no capacity is evaluated without one.
        "without_capacity_loss_paloma": 1.0,
        "without_capacity_accuracy_hellaswag": 0.5,
    }
    assert {name: row[name] for name in expected} == expected
    assert not any("held_out" in name for name in row)
    assert results.notes == []


def test_a_model_with_a_capacity_has_columns_without(store, plan_of, finish):
    plan = plan_of(DEFAULT)
    content, free = documents(), documents(5.0)["scores"]["as_trained"]
    content["scores"]["without_capacity"] = free
    store.run(finish(plan, 0, {"a": 1.0, "macro": 1.0})).write_evaluation("set", content)
    (row,) = read_results(plan, store).rows
    assert (row["loss_set"], row["without_capacity_loss_set"], row["without_capacity_loss_set.x"]) == (1.0, 5.0, 6.0)


@pytest.mark.parametrize("change", [{"fingerprint": "other"}, {"settings": {"window": 16, "stride": 8}}], ids=str)
def test_what_was_evaluated_otherwise_than_most_is_left_out_and_named(store, plan_of, finish, change):
    plan = plan_of(*({**MOE, "seed": seed} for seed in range(3)), {**MOE, "scale": "big", "model.d_model": 32})
    for i in range(4):
        # The last is of another scale, whose values these never meet.
        content = documents(**(change if i in (1, 3) else {}))
        store.run(finish(plan, i, {"a": 1.0, "macro": 1.0})).write_evaluation("set", content)
    results = read_results(plan, store)
    assert [row.get("loss_set") for row in results.rows] == [1.0, None, 1.0, 1.0]
    assert [row["loss"] for row in results.rows] == [1.0] * 4
    (note,) = results.notes
    names = [run_name(spec) for spec, _ in plan.runs.values()]
    assert note == f"Left out, its evaluation set is of other files or settings than that of most runs: {names[1]}"


def test_failures_and_damage_are_named_and_leave_the_rest(store, plan_of, finish):
    plan = plan_of({}, MOE, {"seed": 1}, {"seed": 2})
    ids = [finish(plan, i, {"a": 1.0, "macro": 1.0}) for i in range(4)]
    store.run(ids[0]).write_evaluation("set", {"kind": "failed", "reason": "no such file"})
    store.run(ids[1]).write_evaluation("set", documents())
    (store.run(ids[1]).path / "evaluations" / "torn.json").write_text("{")
    content = documents()
    del content["scores"]["as_trained"]["x"]["nats"]
    content["scores"]["as_trained"]["macro"]["nats"] = "high"
    store.run(ids[2]).write_evaluation("set", content)
    store.run(ids[3]).write_evaluation("set", documents(missing=["pile", "ice"]))
    results = read_results(plan, store)
    assert [row.get("loss_set") for row in results.rows] == [None, 1.0, None, 1.0]
    assert [row["loss"] for row in results.rows] == [1.0] * 4
    failed, torn, damaged, lacking = results.notes
    assert "its evaluation set failed: no such file: tiny-dense-seed0" in failed
    assert "torn.json is damaged" in torn
    assert "its evaluation set is damaged (TypeError str is no number)" in damaged
    assert lacking == "Evaluated in part, set is a mean without pile, ice: tiny-dense-seed2"


def test_a_set_called_as_a_domain_of_the_text_takes_no_column(store, plan_of, finish):
    plan = plan_of(MOE)
    folder = store.run(finish(plan, 0, {"wiki": 1.0, "macro": 1.0}))
    folder.write_evaluation("wiki", documents(9.0))
    results = read_results(plan, store)
    assert results.rows[0]["loss_wiki"] == 1.0
    assert "loss_wiki.x" not in results.rows[0]
    (note,) = results.notes
    assert "its evaluation wiki is called as another set (bits_per_byte_wiki)" in note


@pytest.mark.parametrize("kind", [Kind.DIVERGED])
def test_what_diverged_has_no_evaluations(store, plan_of, finish, kind):
    plan = plan_of(MOE)
    store.run(finish(plan, 0, kind=kind)).write_evaluation("set", documents())
    assert "loss_set" not in read_results(plan, store).rows[0]


def test_figures_of_accuracy_and_of_sets_are_drawn_when_runs_have_them(store, plan_of, finish):
    points = [{}, *({"model.experts": f"n={n} g={g}"} for n in (4, 8) for g in ("1/2", "1/4"))]
    panels = (Panel("P", "g", "n"),)
    figures = [Figure("figure_2", "Loss", panels), Figure("figure_25", "HellaSwag", panels, y="accuracy_hellaswag")]
    plan = plan_of(*points, figures=figures)
    ids = [finish(plan, i, {"a": 1.0 + i, "macro": 1.0 + i}) for i in range(len(points))]
    results, *_ = write_report(plan, store, grid="mine", scale="s", about="")
    assert results.notes == ["figure_25 is not drawn: no run has accuracy_hellaswag yet"]
    for i, id_ in enumerate(ids):
        store.run(id_).write_evaluation("hellaswag", tasks("hellaswag", value=i / 8))
        store.run(id_).write_evaluation("paloma", documents(2.0 + i))
    results, _, page = write_report(plan, store, grid="mine", scale="s", about="", evaluation_sets=True)
    assert results.notes == []
    drawn = {path.name for path in page.parent.glob("*.svg")} | {path.name for path in page.parent.glob("*.png")}
    assert drawn == files("figure_2", "figure_25")
    sets = {path.stem for path in (page.parent / EVALUATION_SETS).glob("*.svg")}
    assert sets == {f"figure_2_{name}" for name in ("a", "hellaswag", "paloma", "paloma.x")}
    svg = (page.parent / "figure_25.svg").read_text()
    assert "hellaswag accuracy: 0.5000" in svg


def test_figures_of_sets_have_files_of_their_own_whatever_is_called_how(store, plan_of, finish):
    panels = (Panel("P", "g", "n"),)
    figures = [Figure(name, name, panels) for name in ("f", "f_x")]
    plan = plan_of({}, MOE, figures=figures)
    for i in range(2):
        finish(plan, i, {"y": 1.0 + i, "x_y": 5.0 + i, "macro": 1.0})
    *_, page = write_report(plan, store, grid="mine", scale="s", about="", evaluation_sets=True)
    drawn = sorted((page.parent / EVALUATION_SETS).glob("*.svg"))
    assert len(drawn) == 4
    told = {(file.read_text().count("x_y: cross-entropy") > 0) for file in drawn}
    assert told == {True, False}


def test_labels():
    assert label("accuracy_normalised_mmlu_stem") == "mmlu_stem accuracy, by length"
    assert label("without_capacity_accuracy_boolq") == "boolq accuracy,\nno capacity"
    assert label("without_capacity_loss_paloma") == "paloma: cross-entropy (nats),\nno capacity"
    for name in ("without_capacity_loss_paloma", "accuracy_normalised_boolq"):
        assert Figure("f", "F", (Panel("P", "g", "n"),), y=name).y == name
