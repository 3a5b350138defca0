"""The authors' values: typed as the study has them, and set only beside runs that they can be set beside."""

import json
import re
from typing import Any

import numpy as np
import pytest

from slicedice.report.reference import BATCH, REFERENCES, Reference, compare
from slicedice.report.report import write_report
from slicedice.spec import moe_layer
from tests.report.test_page import Page

STUDY = """
| 82M, 1B | dense (and a repeat) | 4.951 / 5.324 (4.947 / 5.314) |
| | dropless n16 g1/2 s8 | 4.752 / 5.148 |
| | dropless n16 g1/4 s4 | 4.821 / 5.207 |
| | dropless n32 g1/4 s8 | 4.720 / 5.079 |
| | dropless n64 g1/2 s32, gamma 1e-3 | 4.591 / 4.966 |
| | default n16 g1/2 s8, alpha 1e-4, gamma 1e-3 | 4.794 / 5.506 |
| | default n16 g1/4 s4, alpha 1e-4, gamma 1e-3 | 4.833 / 5.566 |
| 194M, 5B | dense | 3.681 / 3.685 |
| | dropless n16 g1 s16 | 3.659 / 3.667 |
| | dropless n16 g1/2 s8 | 3.487 / 3.485 |
| | dropless n64 g1/2 s32, gamma 1e-3 | 3.390 / 3.384 |
| 300M, 10B | dropless n64 g1/4 s16, gamma 1e-3 | 3.090 / 3.088 |
"""
"""The study's table of reference values, as this project was given it: train / evaluation, (of a repeat)."""

SIZES = {
    "80m": {"model.d_model": 336, "model.layers": 8, "model.heads": 7},
    "200m": {"model.d_model": 640, "model.layers": 10, "model.heads": 10},
    "300m": {"model.d_model": 832, "model.layers": 12, "model.heads": 13},
}
SETTING: dict[str, Any] = {
    "scale": "80m",
    **SIZES["80m"],
    "model.vocab_size": 100_352,
    "router.group": 8,
    "data.sequence_length": 2048,
    "optimizer.learning_rate": 4e-4,
    "budget.tokens": 1_000_000_000,
    "budget.batch_size": 512,
}
"""That of the 82M reference runs, but for the layer."""

MOE = moe_layer(s=8, g="1/2")
CAPPED = {"router.kind": "default", "router.alpha": 1e-4, "router.gamma": 1e-3}


@pytest.fixture
def run(row_of):
    """A finished run at the 82M setting, with some fields otherwise."""

    def make(*overrides: dict[str, Any], loss: float = 5.0, **more: Any):
        fields = {name: value for own in (SETTING, *overrides) for name, value in own.items()}
        row = row_of(fields, loss=loss, **more)
        return {**row, "steps": round(row["tokens"] / fields["budget.batch_size"] / 2048)}

    return make


def in_the_study() -> list[tuple[str, list[str]]]:
    """The table's lines: a configuration, and the numbers beside it."""
    lines = [line.strip("| ").split(" | ") for line in STUDY.strip().splitlines()]
    return [(" ".join(line[:-1]), re.findall(r"\d\.\d{3}", line[-1])) for line in lines]


def test_values_are_those_of_the_study():
    lines = in_the_study()
    assert len(lines) == len(REFERENCES)
    active = tokens = 0.0
    for (text, numbers), reference in zip(lines, REFERENCES, strict=True):
        if head := re.match(r"(\d+)M, (\d+)B", text):
            active, tokens = float(head[1]) * 1e6, float(head[2]) * 1e9
        values = [value for pair in zip(reference.train, reference.evaluation, strict=True) for value in pair]
        assert (reference.active, reference.tokens, [f"{value:.3f}" for value in values]) == (active, tokens, numbers)
        if "dense" in text:
            assert (reference.router, reference.n, reference.g) == (None, 1, "1")
            assert (reference.alpha, reference.gamma) == (None, None)
            continue
        ((router, n, g, s),) = re.findall(r"(\w+) n(\d+) g(\S+) s(\d+)", text)
        assert (reference.router, str(reference.n), reference.g) == (router, n, g)
        assert f" s{s}," in reference.configuration, "sparsity follows from the others"
        balancing = (1e-4 if "alpha 1e-4" in text else 1e-2, 1e-3 if "gamma 1e-3" in text else 0.0)
        assert (reference.alpha, reference.gamma) == balancing


def test_seeds_at_the_same_setting_stand_beside_both_values_of_the_repeat(run, rng: np.random.Generator):
    losses = rng.normal(5, 0.1, 3).tolist()
    (line,) = compare([run({"seed": seed}, loss=loss) for seed, loss in enumerate(losses)])
    assert line.same
    assert line.reference == REFERENCES[0]
    assert line.loss.mean == pytest.approx(np.mean(losses))
    assert line.train == pytest.approx(np.mean(losses) - 0.5)
    text = line.as_text()
    assert text["authors' train"] == "4.951 and 4.947"
    assert text["authors' evaluation"] == "5.324 and 5.314"
    assert (text["own train"], text["own held-out"]) == (f"{np.mean(losses) - 0.5:.4f}", f"{np.mean(losses):.4f}")
    assert (text["active"], text["configuration"], text["seeds"]) == ("82M", "dense", "3")
    assert (text["authors' budget"], text["own budget"]) == ("1B tokens at 4e-4", "the same")


def spec_of(reference: Reference) -> dict[str, Any]:
    """A run's fields, from the words of a reference run."""
    if reference.router is None:
        return {}
    ((n, g, s),) = re.findall(r"n(\d+) g(\S+) s(\d+)", reference.configuration)
    router = {"router.kind": reference.router, "router.alpha": reference.alpha, "router.gamma": reference.gamma}
    fields = {**moe_layer(s=int(s), g=g), **router}
    assert f"n={n} " in fields["model.experts"]
    return fields


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda r: f"{r.active / 1e6:.0f}M {r.configuration}")
def test_a_run_at_its_setting_stands_beside_each_value_and_no_other(run, reference: Reference):
    scale = {82: "80m", 194: "200m", 300: "300m"}[round(reference.active / 1e6)]
    at = {**SIZES[scale], "scale": scale, "budget.tokens": int(reference.tokens), **spec_of(reference)}
    (line,) = compare([run(at)])
    assert (line.reference, line.same) == (reference, True)
    # The scales' own 20 tokens a parameter are another budget, whatever the scale.
    (line,) = compare([run(at, {"budget.tokens": int(20 * reference.active)})])
    assert (line.reference, line.same) == (reference, False)


OTHER_LAYER = {
    "count": moe_layer(s=16, g="1/2"),
    "granularity": moe_layer(s=8, g="1/8"),
    "two sizes": moe_layer(s=8, g="1/2+1/4"),
    "generalist": {"model.experts": "n=16 k=1 g=1/2", "model.generalist": "1/2"},
    "active experts": {"model.experts": "n=16 k=4 g=1/2", "model.waive": "active_width"},
    "router": {**MOE, "router.kind": "default"},
    "capacity": {**MOE, **CAPPED, "router.capacity_factor": 2.0},
    "alpha": {**MOE, "router.alpha": 1e-4},
    "gamma": {**MOE, "router.gamma": 1e-3},
    "z-loss": {**MOE, "router.z_loss": 0.0},
    "active parameters": {**MOE, "model.d_model": 432, "model.layers": 9, "model.heads": 9},
    "vocabulary": {**MOE, "model.vocab_size": 256},
}


@pytest.mark.parametrize("other", OTHER_LAYER)
def test_another_layer_or_router_stands_beside_nothing(run, other: str):
    assert [line.same for line in compare([run(MOE)])] == [True]
    assert compare([run(OTHER_LAYER[other])]) == []


OTHER_BUDGET = {
    "1.03B tokens at 4e-4": {"budget.tokens": 1_030_000_000},
    "970M tokens at 4e-4": {"budget.tokens": 970_000_000},
    "1B tokens at 5e-4": {"optimizer.learning_rate": 5e-4},
    "1B tokens in 1,907 steps at 4e-4": {"budget.batch_size": 256},
}


@pytest.mark.parametrize("told", OTHER_BUDGET)
def test_another_budget_is_told_and_never_taken_for_the_same(run, told: str):
    row = run(MOE, OTHER_BUDGET[told])
    (line,) = compare([row])
    assert not line.same
    assert line.as_dict()["same_setting"] is False
    assert line.as_text()["authors' budget"] == "1B tokens at 4e-4"
    assert line.as_text()["own budget"] == told
    # Beside a run at the same setting it is not told at all.
    both = compare([row, run(MOE, loss=4.0)])
    assert [(line.same, line.loss.mean) for line in both] == [(True, 4.0)]


@pytest.mark.parametrize("tokens", [985_000_000, 1_015_000_000])
def test_tokens_within_two_percent_are_the_same(run, tokens: int):
    row = run(MOE, {"budget.tokens": tokens})
    assert row["tokens"] % BATCH == 0
    assert [line.same for line in compare([row])] == [True]


def test_of_several_other_budgets_the_nearest_is_told(run):
    def told(*rows) -> list[float]:
        return [line.loss.mean for line in compare([*rows])]

    near, far = (run({"budget.tokens": tokens}, loss=loss) for tokens, loss in ((1_600_000_000, 1.0), (4 * 10**9, 2.0)))
    fast = run({"optimizer.learning_rate": 4e-3}, loss=3.0)
    for rows in ((near, far, fast), (fast, far, near)):
        assert told(*rows) == [1.0]
    # One that differs in its tokens alone is nearer than one of another learning rate.
    assert told(fast, far) == [2.0]
    assert told(fast) == [3.0]


def test_what_is_not_done_stands_beside_nothing(run):
    for state in ("missing", "running", "diverged", "crashed"):
        assert compare([run(MOE, state=state)]) == []
    assert compare([{**run(MOE), "loss": None}]) == []
    (line,) = compare([{**run(MOE), "train_loss": None}])
    assert (line.train, line.as_text()["own train"]) == (None, "")


def test_settings_that_nothing_else_shows_are_told(run):
    rows = [
        run(MOE, {"optimizer.weight_decay": decay}, settings=f"steps=954 alpha=0.01 weight_decay={decay}")
        for decay in (0.1, 0.2)
    ]
    assert [line.as_text()["settings"] for line in compare(rows)] == ["weight_decay=0.1", "weight_decay=0.2"]


def test_a_comparison_is_json_with_numbers_and_runs(run):
    row = run(MOE, CAPPED, loss=5.25)
    (content,) = json.loads(json.dumps([line.as_dict() for line in compare([row])]))
    assert content["same_setting"] is True
    assert content["configuration"] == "default n16 g1/2 s8, alpha 0.0001, gamma 0.001"
    assert content["reference"] == {"tokens": 1e9, "learning_rate": 4e-4, "train_loss": [4.794], "loss": [5.506]}
    own = {"scale": "80m", "tokens": row["tokens"], "steps": 954, "learning_rate": 4e-4, "train_loss": 4.75}
    assert content["own"] == {**own, "loss": 5.25, "seeds": 1, "runs": [row["id"]]}


@pytest.mark.parametrize("budgets", [["same"], ["other"], ["same", "other"], []])
def test_the_page_sets_them_apart_and_names_the_text(store, plan_of, finish, budgets: list[str]):
    points = {
        "same": {**SETTING, **MOE},
        "other": {**SETTING, **moe_layer(s=4, g="1/4"), "budget.tokens": 1_600_000_000},
    }
    plan = plan_of({}, *(points[name] for name in budgets))
    for i, (spec, _) in enumerate(plan.runs.values()):
        finish(plan, i, {"a": 4.5, "macro": 4.5}, steps=spec.budget.steps)
    *_, path = write_report(plan, store, grid="mine", scale="s", about="")
    page = Page(path)
    assert ("Beside the authors' values" in page.words) is bool(budgets)
    assert ("The same setting" in page.words) is ("same" in budgets)
    assert ("another budget" in page.words) is ("other" in budgets)
    assert ("only with --config.budget.tokens" in page.words) is ("other" in budgets)
    assert ("comparable only on the same data and tokenizer, and these runs read embedded" in page.words) is bool(
        budgets
    )
    if "same" in budgets:
        assert page.row("4.752")[-3:] == ["2.5000", "4.5000", "1"]
        assert "the same" in page.row("4.752")
    if "other" in budgets:
        assert {"1B tokens at 4e-4", "1.6B tokens at 4e-4"} <= set(page.row("4.821"))
