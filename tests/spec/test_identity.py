"""What makes two runs the same: ids, names, program keys and their JSON."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from slicedice.spec import canonical_json, from_json, program_key, run_id, run_name, study_config
from slicedice.spec.config import flat_fields
from slicedice.spec.identity import SCHEMA, id_of_json

# A run in which every setting has an effect,
BASE = {
    "data.source": "another/file.txt",
    "model.d_ff": 64,
    "model.experts": "n=6 k=2 g=1/4",
    "model.generalist": "1/2",
    "model.waive": "active_width",
    "router.kind": "default",
    "router.gamma": 1e-3,
    "router.group": 2,
}
# and another valid value for each field. A new field needs a line here.
SCIENCE = {
    "seed": 1,
    "compute_dtype": "bfloat16",
    "model.d_model": 32,
    "model.layers": 3,
    "model.heads": 4,
    "model.d_ff": 128,
    "model.vocab_size": 300,
    "model.experts": "n=8 k=2 g=1/4",
    "model.generalist": "1/4",
    "model.wiring": "plain",
    "router.kind": "dropless",
    "router.capacity_factor": 1.5,
    "router.alpha": 0.1,
    "router.gamma": 0.0,
    "router.z_loss": 0.0,
    "router.group": 4,
    "data.source": "a/file.txt",
    "data.tokenizer": "another",
    "data.sequence_length": 8,
    "data.heldout_fraction": 0.1,
    "data.tokens": 1000,
    "optimizer.learning_rate": 1e-3,
    "optimizer.weight_decay": 0.0,
    "optimizer.warmup_steps": 0,
    "optimizer.final_fraction": 0.0,
    "optimizer.b1": 0.8,
    "optimizer.b2": 0.99,
    "optimizer.eps": 1e-6,
    "optimizer.clip": 2.0,
    "optimizer.output_z_loss": 0.0,
    "budget.tokens": 7 * 8 * 16,
    "budget.batch_size": 4,
    "evaluation.tokens": 1000,
}
NOT_SCIENCE = {
    "scale": "another",
    "model.waive": "",
    "execution.micro_batch": 4,
    "execution.mesh": "data=2",
    "execution.expert_slack": 3.0,
    "execution.dispatch": "send",
    "execution.remat": True,
    "execution.unroll": 2,
    "execution.lanes": 4,
    "execution.implementation": "ragged_dot",
    "execution.checkpoint_seconds": 1.0,
    "execution.evaluation_sets": "a/folder",
    "execution.evaluation_tasks": "mmlu",
    "execution.evaluation_data": "another",
    "execution.evaluate_every": 2,
    "execution.writers": "tensorboard",
}


# Arguments of a program, and what it has nothing to do with: runs that differ only in them share it.
SHARED = {"seed", "optimizer.learning_rate", "optimizer.weight_decay", "router.alpha", "router.gamma"}
SHARED |= {"scale", "model.waive", "execution.checkpoint_seconds", "execution.evaluate_every", "execution.writers"}
SHARED |= {"execution.lanes", "data.source", "data.tokenizer", "data.heldout_fraction", "data.tokens"}


def test_every_field_is_listed_once():
    assert {*SCIENCE, *NOT_SCIENCE} == set(flat_fields(study_config()))
    assert not SCIENCE.keys() & NOT_SCIENCE.keys()


@pytest.mark.parametrize("field", SCIENCE)
def test_science_makes_the_id(field: str, tiny):
    spec, changed = tiny(BASE)[0], tiny({**BASE, field: SCIENCE[field]})[0]
    assert run_id(changed) != run_id(spec)


@pytest.mark.parametrize("field", NOT_SCIENCE)
def test_execution_and_labels_do_not(field: str, tiny):
    spec, changed = tiny(BASE)[0], tiny({**BASE, field: NOT_SCIENCE[field]})[0]
    assert run_id(changed) == run_id(spec)


@pytest.mark.parametrize("field", [*SCIENCE, *NOT_SCIENCE])
def test_programs_are_shared_by_runs_that_differ_in_nothing_compiled(field: str, tiny):
    changed = {**BASE, field: {**SCIENCE, **NOT_SCIENCE}[field]}
    same = program_key(*tiny(changed)) == program_key(*tiny(BASE))
    assert same == (field in SHARED or "evaluation" in field)


DENSE = {"model.experts": "dense"}
MOE = {"model.experts": "n=8 k=2 g=1/2"}
ALL_ON = {"model.experts": "n=2 k=2 g=1/2"}
GENERAL = {"model.experts": "n=6 k=2 g=1/4", "model.generalist": "1/2"}
DEFAULT = {"router.kind": "default"}
ANY_ROUTER = {
    "router.kind": "default",
    "router.capacity_factor": 2.0,
    "router.alpha": 0.5,
    "router.gamma": 0.5,
    "router.z_loss": 0.5,
    "router.group": 4,
}


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        *(pytest.param(DENSE, {f: v}, id=f"dense has no {f}") for f, v in ANY_ROUTER.items()),
        pytest.param(DENSE, {"model.experts": "n=1 k=1 g=1"}, id="one expert is dense"),
        pytest.param(DENSE, {"model.wiring": "plain"}, id="no generalist to wire in dense"),
        pytest.param(MOE, {"model.wiring": "plain"}, id="no generalist to wire"),
        pytest.param(MOE, {"router.capacity_factor": 2.0}, id="no capacity under dropless"),
        *(
            pytest.param(ALL_ON, {f: v}, id=f"all experts on: no {f}")
            for f, v in ANY_ROUTER.items()
            if f != "router.z_loss"
        ),
        pytest.param(ALL_ON | DEFAULT, {"router.capacity_factor": 1.0}, id="room for all"),
        pytest.param(MOE, {"model.experts": " g=2/4  n=8"}, id="spelling"),
        pytest.param(GENERAL, {"model.generalist": "4/8"}, id="spelling of a generalist"),
        pytest.param(MOE, {"model.d_ff": 64}, id="d_ff is 4 d_model"),
        pytest.param(MOE, {"router.group": 8}, id="the group is the batch"),
        pytest.param(MOE, {"budget.tokens": 6 * 8 * 16 + 60}, id="tokens are whole steps"),
        pytest.param(MOE, {"optimizer.clip": 1}, id="1 is 1.0"),
    ],
)
def test_what_has_no_effect_does_not_make_an_id(base: dict[str, Any], changes: dict[str, Any], tiny):
    assert run_id(tiny({**base, **changes})[0]) == run_id(tiny(base)[0])


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        pytest.param(MOE, DENSE, id="experts"),
        pytest.param(MOE, {"router.group": 4}, id="balance is counted by group"),
        pytest.param(MOE | DEFAULT | {"router.alpha": 0.0}, {"router.group": 4}, id="capacity is too"),
        pytest.param(MOE | {"router.alpha": 0.0}, {"router.group": 4}, id="so is balance that is only recorded"),
        pytest.param(MOE, DEFAULT, id="capacity"),
        pytest.param(ALL_ON, {"router.z_loss": 0.5}, id="all experts on: their logits still learn"),
        pytest.param(ALL_ON, DEFAULT | {"router.capacity_factor": 0.5}, id="no room for all"),
        pytest.param(
            {"model.experts": "n=1 k=1 g=1/2 + n=4 k=1 g=1/2"}, {"router.alpha": 0.5}, id="one of two sets chooses"
        ),
        pytest.param(MOE, {"model.experts": "n=4 k=2 g=1/2"}, id="n"),
        pytest.param(MOE, {"model.experts": "n=16 k=4 g=1/4"}, id="g at the same sparsity"),
    ],
)
def test_what_has_an_effect_does(base: dict[str, Any], changes: dict[str, Any], tiny):
    assert run_id(tiny({**base, **changes})[0]) != run_id(tiny(base)[0])


def test_an_id_is_the_same_for_ever(tiny):
    """Of a run whose every field is set here. If it changes, no stored result is found any more."""
    assert SCHEMA == 1
    fixed = {"router.kind": "default", "data.source": "/texts", "data.tokenizer": "bytes", "data.tokens": 0}
    assert run_id(tiny({**BASE, **SCIENCE, **fixed})[0]) == "949a7c80bee1"
    # Made by the first version, which had no data.tokens; with it an id is another.
    assert run_id(tiny({**BASE, **SCIENCE, **fixed, "data.tokens": 9})[0]) == "329f24f989b6"


SPECS = [DENSE, MOE, ALL_ON, GENERAL, BASE, DEFAULT | {"model.experts": "n=4 k=1 g=1/2 + n=8 k=2 g=1/4"}]


@pytest.mark.parametrize("overrides", SPECS)
def test_json_there_and_back(overrides: dict[str, Any], tiny):
    spec, _ = tiny(overrides)
    text = canonical_json(spec)
    back = from_json(text)
    assert back == spec
    assert repr(back) == repr(spec)  # the types too
    assert run_id(back) == run_id(spec)
    assert "\n" not in text
    assert text.isascii()
    shuffled = json.dumps(dict(reversed(json.loads(text).items())), indent=1)
    assert from_json(shuffled) == spec
    labelled = canonical_json(tiny({**overrides, "scale": "another"})[0])
    assert id_of_json(text) == id_of_json(shuffled) == id_of_json(labelled) == run_id(spec)


@pytest.mark.parametrize("change", [{"schema": SCHEMA + 1}, {"schema": None}, {"schema": str(SCHEMA)}])
@pytest.mark.parametrize("read", [from_json, id_of_json])
def test_json_of_another_schema(read: Callable, change: dict[str, Any], tiny):
    content = json.loads(canonical_json(tiny(MOE)[0]))
    with pytest.raises(ValueError, match=f"not a run spec of schema {SCHEMA}"):
        read(json.dumps(content | change))


@pytest.mark.parametrize("missing", ["schema", "seed", "model", "budget"])
def test_json_that_lacks_something(missing: str, tiny):
    content = json.loads(canonical_json(tiny(MOE)[0]))
    del content[missing]
    with pytest.raises(ValueError, match=f"not a run spec of schema {SCHEMA}"):
        from_json(json.dumps(content))


@pytest.mark.parametrize("text", ["[]", "3", "null", "", "{"])
@pytest.mark.parametrize("read", [from_json, id_of_json])
def test_what_is_no_spec_at_all(read: Callable, text: str):
    with pytest.raises(ValueError):  # noqa: PT011 - two kinds, one of them the JSON reader's
        read(text)


def test_names(tiny):
    assert run_name(tiny(DENSE)[0]) == "tiny-dense-seed0"
    assert run_name(tiny(MOE | {"seed": 3})[0]) == "tiny-g1/2-n8-s4-dropless-seed3"
    loud = tiny({**GENERAL, **DEFAULT, "router.alpha": 1e-4, "router.gamma": 1e-3})[0]
    assert run_name(loud) == "tiny-g1/4-n6-s2-default-gen1/2-parallel-alpha0.0001-gamma0.001-seed0"
    two = tiny({"model.experts": "n=4 k=1 g=1/2 + n=8 k=2 g=1/4"})[0]
    assert run_name(two) == "tiny-g1/2+1/4-n4+8-s4-dropless-seed0"
