"""Held-out cross-entropy against numpy on the model's own logits, one stretch of text at a time, unpadded."""

import json
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from slicedice.data import TokenStore, prepare
from slicedice.evaluation import Scores, evaluate, held_out
from slicedice.evaluation.scoring import Scorer
from slicedice.model import Decoder
from slicedice.moe import Routing
from slicedice.spec import RunSpec
from tests.evaluation.models import sure_model

S = 16
MOE = {"model.experts": "n=4 g=1/2", "model.layers": 1, "evaluation.tokens": 10**6, "router.group": 1}
CAPACITY = {**MOE, "router.kind": "default", "router.capacity_factor": 0.5}
ROOM = Routing(0.5, S)  # an expert takes 8 of a sequence's tokens, which is the mean load


class Setting(NamedTuple):
    tokens: TokenStore
    model: Decoder
    spec: RunSpec
    capacity_spec: RunSpec


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory, tiny) -> Setting:
    """Text of three domains of different size, and a model that is sure of what it says."""
    folder = tmp_path_factory.mktemp("text")
    draw = np.random.default_rng(0)
    for domain, letters in {"a": "abcd", "b": "xyzä \n", "c": "01"}.items():
        records = ("".join(draw.choice(list(letters), draw.integers(30, 90))) for _ in range(12 + ord(domain) % 7))
        (folder / f"{domain}-").mkdir()
        (folder / f"{domain}-" / "all.jsonl").write_text("\n".join(json.dumps({"text": r}) for r in records))
    tokens = prepare(str(folder), "bytes", tmp_path_factory.mktemp("stores"), 0.2)
    spec, _ = tiny(MOE)
    capacity_spec, _ = tiny(CAPACITY)
    assert spec.data.sequence_length == S
    return Setting(tokens, sure_model(spec, draw), spec, capacity_spec)


def stretch(setting: Setting, domain: str, max_tokens: int) -> np.ndarray:
    stream = setting.tokens.heldout[domain]
    return stream[: min(max_tokens, stream.size - 1) + 1].astype(np.int64)


@pytest.fixture(scope="module")
def losses(setting: Setting) -> dict[str, np.ndarray]:
    """The loss of every held-out target of each domain, in nats; windows are S apart."""
    graphdef, state = nnx.split(setting.model)
    forward = jax.jit(lambda tokens: nnx.merge(graphdef, state)(tokens)[0])
    found = {}
    for domain in setting.tokens.domains:
        stream, values = stretch(setting, domain, 10**9), []
        for start in range(0, stream.size - 1, S):
            targets = stream[start + 1 : start + S + 1]
            # A model that looks ahead is another test's: what follows the text must be no text here.
            inputs = np.zeros((1, S), np.int32)
            inputs[0, : targets.size] = stream[start : start + targets.size]
            logits = np.asarray(forward(jnp.asarray(inputs)), np.float64)[0, : targets.size]
            shifted = logits - logits.max(1, keepdims=True)
            values.append(np.log(np.exp(shifted).sum(1)) - shifted[np.arange(targets.size), targets])
        found[domain] = np.concatenate(values)
    return found


def everything(setting: Setting, max_tokens: int = 10**6) -> Scores:
    score = Scorer(setting.model, Routing())
    return evaluate(score, setting.tokens, batch_size=3, sequence_length=S, max_tokens=max_tokens)


def agree(found: Scores, expected: Scores) -> None:
    assert found.keys() == expected.keys()
    for domain in expected:
        assert found[domain] == pytest.approx(expected[domain], rel=2e-5), domain


@pytest.mark.parametrize("max_tokens", [10**6, 50, 1])
def test_scores_are_those_of_the_models_logits(setting: Setting, losses, max_tokens: int):
    scores = everything(setting, max_tokens)
    assert list(scores) == [*setting.tokens.domains, "macro"]
    for domain in setting.tokens.domains:
        mine = losses[domain][:max_tokens]
        letters = (stretch(setting, domain, max_tokens)[1:] != setting.tokens.end_of_document).sum()
        expected = {
            "nats": mine.mean(),
            "bits_per_byte": mine.sum() / letters / math.log(2),
            "targets": min(max_tokens, losses[domain].size),
        }
        assert scores[domain] == pytest.approx(expected, rel=2e-5)
    # Tokens cost differently: mistaken targets would not pass for these.
    assert all(values.std() > 0.5 for values in losses.values())


def test_the_macro_average_counts_domains_and_not_tokens(setting: Setting, losses):
    scores = everything(setting)
    sizes = [values.size for values in losses.values()]
    means = [values.mean() for values in losses.values()]
    assert scores["macro"]["nats"] == pytest.approx(np.mean(means), rel=2e-5)
    assert abs(np.average(means, weights=sizes) / np.mean(means) - 1) > 1e-3
    assert scores["macro"]["targets"] == sum(sizes)
    bits = [scores[domain]["bits_per_byte"] for domain in setting.tokens.domains]
    assert scores["macro"]["bits_per_byte"] == pytest.approx(np.mean(bits), rel=1e-12)


@pytest.mark.parametrize("kind", ["dropless", "capacity"])
def test_batches_of_two_and_three_agree(setting: Setting, kind: str):
    spec, routing = {"dropless": (setting.spec, Routing()), "capacity": (setting.capacity_spec, ROOM)}[kind]
    two, three = (held_out(setting.model, setting.tokens, spec, routing, batch_size=size) for size in (2, 3))
    # Both pad the last batch of some domain, and not equally.
    windows = {-(-(stretch(setting, domain, 10**9).size - 1) // S) for domain in setting.tokens.domains}
    assert any(count % 2 != 0 or count % 3 != 0 for count in windows)
    assert two.keys() == three.keys()
    for name in two:
        agree(two[name], three[name])


def test_a_model_trained_with_a_capacity_is_measured_without_as_well(setting: Setting):
    scores = held_out(setting.model, setting.tokens, setting.capacity_spec, ROOM, batch_size=3)
    assert list(scores) == ["held_out", "without_capacity"]
    dropless = held_out(setting.model, setting.tokens, setting.spec, Routing(), batch_size=3)
    assert list(dropless) == ["held_out"]
    agree(scores["without_capacity"], dropless["held_out"])
    # Some expert had less room than it was offered tokens.
    difference = scores["held_out"]["macro"]["nats"] - scores["without_capacity"]["macro"]["nats"]
    assert abs(difference) > 1e-3


def test_no_more_is_measured_than_the_run_asks_for(setting: Setting, tiny):
    spec, _ = tiny({**MOE, "evaluation.tokens": 50})
    scores = held_out(setting.model, setting.tokens, spec, Routing(), batch_size=3)["held_out"]
    assert [scores[domain]["targets"] for domain in setting.tokens.domains] == [50] * 3
    agree(scores, everything(setting, 50))


def test_measuring_leaves_the_model_as_it_was(setting: Setting):
    before = [np.array(leaf) for leaf in jax.tree.leaves(nnx.state(setting.model))]
    held_out(setting.model, setting.tokens, setting.spec, Routing(), batch_size=3)
    after = jax.tree.leaves(nnx.state(setting.model))
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
