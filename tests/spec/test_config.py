"""Every setting that cannot be is refused, by its field, its value and what would be valid."""

import math
from typing import Any

import pytest

from slicedice.spec import SpecError, study_config
from slicedice.spec.config import flat_fields, override

ABOVE, FROM, SHARE = "above 0", "from 0", "from 0 to 1"
MOE = {"model.experts": "n=8 k=2 g=1/2"}


@pytest.mark.parametrize(
    ("overrides", "valid"),
    [
        ({"compute_dtype": "float16"}, "bfloat16, float32"),
        ({"seed": -1}, FROM),
        ({"evaluation.tokens": 0}, ABOVE),
        ({"model.d_model": 0}, ABOVE),
        ({"model.layers": 0}, ABOVE),
        ({"model.heads": -1}, ABOVE),
        ({"model.vocab_size": 0}, ABOVE),
        ({"model.d_ff": -64}, "0 for 4 * model.d_model"),
        ({"model.heads": 3}, "divide model.d_model = 16"),
        ({"model.heads": 16}, "even"),
        ({"model.waive": "all"}, '"active_width"'),
        ({"model.experts": "n=4 k=1 g=1/2"}, "is 1/2 of d_ff and has to be 1; set model.waive"),
        ({"model.experts": "n=4 k=2 g=1/2", "model.generalist": "1/2"}, "is 3/2 of d_ff and has to be 1"),
        ({"model.generalist": "1/3", "model.waive": "active_width", **MOE}, "d_ff = 64"),
        ({"router.kind": "expert choice"}, "dropless, default"),
        ({"router.capacity_factor": -1.0}, FROM),
        ({"router.alpha": -0.1}, FROM),
        ({"router.gamma": -0.1}, FROM),
        ({"router.z_loss": -0.1}, FROM),
        ({"router.group": 3}, "divide budget.batch_size = 8"),
        ({"router.group": -4}, "divide budget.batch_size = 8"),
        ({"data.sequence_length": 0}, ABOVE),
        ({"data.heldout_fraction": 0.0}, "up to 0.5"),
        ({"data.heldout_fraction": 0.6}, "up to 0.5"),
        ({"data.tokenizer": " "}, "path of a tokenizer"),
        ({"data.tokens": -1}, "0 for all"),
        ({"data.tokens": 1000}, "taken as a whole"),
        ({"optimizer.learning_rate": 0.0}, ABOVE),
        ({"optimizer.eps": 0.0}, ABOVE),
        ({"optimizer.clip": 0.0}, ABOVE),
        ({"optimizer.weight_decay": -0.1}, FROM),
        ({"optimizer.warmup_steps": -1}, FROM),
        ({"optimizer.output_z_loss": -1e-5}, FROM),
        ({"optimizer.final_fraction": 1.1}, SHARE),
        ({"optimizer.final_fraction": -0.1}, SHARE),
        # Adam divides by 1 - b^t.
        ({"optimizer.b1": -0.1}, "from 0, below 1"),
        ({"optimizer.b1": 1.0}, "from 0, below 1"),
        ({"optimizer.b2": 1.0}, "from 0, below 1"),
        ({"budget.batch_size": 0}, ABOVE),
        ({"budget.tokens": 0}, "one step takes 128 tokens"),
        ({"budget.tokens": 60}, "one step takes 128 tokens"),
        ({"execution.micro_batch": 3}, "divide budget.batch_size = 8"),
        ({"execution.micro_batch": -8}, "divide budget.batch_size = 8"),
        ({"execution.micro_batch": 2, "router.group": 4, **MOE}, "a multiple of router.group = 4"),
        ({"execution.mesh": "data=3"}, "divides 8"),
        ({"execution.mesh": "data=8", "router.group": 4, **MOE}, "divides 2"),
        ({"execution.mesh": "data=2 data=2"}, "data=8 expert=4"),
        ({"execution.mesh": "data=0"}, "data=8 expert=4"),
        ({"execution.mesh": "batch=2"}, "data=8 expert=4"),
        ({"execution.micro_batch": 8, "execution.mesh": "data=2"}, "the 4 sequences of a device"),
        ({"execution.expert_slack": 0.5}, "from 1"),
        ({"execution.dispatch": "post"}, "'gather', 'send'"),
        ({"execution.unroll": 0}, ABOVE),
        ({"execution.lanes": -1}, "a number of runs, or 0"),
        ({"execution.checkpoint_seconds": 0.0}, ABOVE),
    ],
    ids=lambda x: str(x) if isinstance(x, dict) else "",
)
def test_values_out_of_range(overrides: dict[str, Any], valid: str, tiny):
    field, value = next(iter(overrides.items()))
    with pytest.raises(SpecError) as error:
        tiny(overrides)
    assert error.value.field == field
    assert f"{field} = {value!r} cannot be used: " in str(error.value)
    assert valid in str(error.value)


def test_an_expert_width_that_is_not_whole(tiny):
    with pytest.raises(SpecError, match=r"model.experts g = '1/128' cannot be used: g \* d_ff .* d_ff = 64") as error:
        tiny({"model.experts": "n=256 k=128 g=1/128"})
    assert error.value.field == "model.experts g"


SCIENCE_FLOATS = [
    name
    for name, value in flat_fields(study_config()).items()
    if isinstance(value, float) and not name.startswith("execution.")
]


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("field", SCIENCE_FLOATS)
def test_numbers_are_finite(field: str, value: float, tiny):
    with pytest.raises(SpecError) as error:
        tiny({field: value, **MOE, "router.kind": "default"})
    assert error.value.field == field


def test_an_active_width_may_be_waived(tiny):
    spec, _ = tiny({"model.experts": "n=4 k=1 g=1/2", "model.waive": "active_width"})
    assert spec.model.layer.active_width == 1 / 2


def test_stand_ins(tiny):
    """What 0 stands for."""
    spec, execution = tiny({"router.kind": "default", **MOE})
    assert spec.model.d_ff == 4 * spec.model.d_model
    assert spec.router.group == execution.micro_batch == spec.budget.batch_size
    assert spec.budget.steps == 6


def test_tokens_become_the_nearest_number_of_steps(tiny):
    for tokens, steps in ((6 * 128 - 63, 6), (6 * 128 + 63, 6), (6 * 128 + 65, 7)):
        assert tiny({"budget.tokens": tokens})[0].budget.steps == steps


def test_evaluations_are_named_or_paths(tiny, tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    given = {"sets": "paloma, a/set,c4_en", "tasks": "mmlu,boolq", "data": "folder"}
    _, execution = tiny({f"execution.evaluation_{name}": value for name, value in given.items()})
    assert execution.evaluation_sets == f"paloma,{tmp_path}/a/set,c4_en"
    assert execution.evaluation_tasks == "mmlu,boolq"
    assert execution.evaluation_data == f"{tmp_path}/folder"
    _, execution = tiny()
    assert (execution.evaluation_sets, execution.evaluation_tasks, execution.evaluation_data) == ("", "", "")


@pytest.mark.parametrize(
    ("overrides", "valid"),
    [
        (
            {"execution.evaluation_tasks": "mmlu,hella"},
            "execution.evaluation_tasks = 'mmlu,hella'.*boolq, hellaswag, mmlu",
        ),
        ({"execution.evaluation_tasks": "mmlu,,boolq"}, "none empty"),
        ({"execution.evaluation_sets": "a,a"}, "each once"),
        ({"execution.evaluation_sets": "paloma"}, "execution.evaluation_data = ''.*paloma can be found"),
        ({"execution.evaluate_every": -1}, "execution.evaluate_every = -1.*steps"),
    ],
)
def test_evaluations_that_cannot_be(overrides: dict[str, Any], valid: str, tiny):
    with pytest.raises(SpecError, match=valid):
        tiny(overrides)


def test_writers_are_named(tiny):
    assert tiny({"execution.writers": "tensorboard, my-own"})[1].writers == "tensorboard,my-own"
    assert tiny()[1].writers == ""


@pytest.mark.parametrize("writers", ["tensorboard,tensorboard", "wandb,", "../a", "os:system", "W&B", "-a"])
def test_writers_that_cannot_be(writers: str, tiny):
    with pytest.raises(SpecError, match=r"execution\.writers"):
        tiny({"execution.writers": writers})


def test_overrides_leave_the_config_alone():
    config = study_config()
    changed = override(config, {"model.d_model": 48, "router.gamma": 1}, where="a test")
    assert (changed.model.d_model, config.model.d_model) == (48, 0)
    assert changed.router.gamma == 1.0
    assert isinstance(changed.router.gamma, float)


@pytest.mark.parametrize("field", ["model.width", "model", "d_model", "model.d_model.x", ""])
def test_a_field_that_there_is_not(field: str):
    with pytest.raises(SpecError, match=r"the grid sets it, and there is no such field: .*model\.d_model") as error:
        override(study_config(), {field: 1}, where="the grid")
    assert error.value.field == field


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("model.d_model", 1.5, "int"),
        ("model.d_model", "16", "int"),
        ("model.d_model", True, "int"),
        ("model.d_model", None, "int"),
        ("router.alpha", "0.1", "float"),
        ("router.alpha", None, "float"),
        ("execution.remat", 1, "bool"),
        ("data.source", 3, "str"),
        ("data.source", None, "str"),
    ],
)
def test_a_value_of_another_type(field: str, value: Any, kind: str):
    message = f"{field} = {value!r} cannot be used: the grid sets it, and it has to be of type {kind}"
    with pytest.raises(SpecError) as error:
        override(study_config(), {field: value}, where="the grid")
    assert str(error.value) == message
