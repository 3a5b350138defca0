"""Costs counted by hand for a dense and a routed model."""

import dataclasses
import json

import pytest

from slicedice.cost import RATES, Rate, cost, footprint
from slicedice.cost.estimate import step_seconds, utilization
from slicedice.cost.footprint import memory_parts
from slicedice.model import cross_entropy
from slicedice.spec import Execution, RunSpec

# The tiny model: D = 16, 2 layers, 2 heads, d_ff = 64, V = 256, S = 16, 6 steps of 8 sequences.
D, LAYERS, HEADS, D_FF, V, S, STEPS, B = 16, 2, 2, 64, 256, 16, 6, 8
ATTENTION = 4 * D * D
NORMS = 4 * D  # after attention, after the FFN, on queries, on keys
RATE = Rate(peak=2e9, utilization=0.25)

# Eight experts of width 16, four active; a router of D x 8.
MOE = {"model.experts": "n=8 k=4 g=1/4"}
POINTS = {"dense": {}, "moe": MOE, "generalist": {"model.experts": "n=8 k=3 g=1/4", "model.generalist": "1/4"}}
MATRICES = {"dense": 3 * D * 64, "moe": 8 * 3 * D * 16, "generalist": 9 * 3 * D * 16}  # all the experts of a layer
ROUTERS = {"dense": 0, "moe": D * 8, "generalist": D * 8}
EXTRA_NORM = {"dense": 0, "moe": 0, "generalist": D}  # the parallel wiring's own


@pytest.fixture(params=POINTS)
def run(request: pytest.FixtureRequest, tiny) -> tuple[str, RunSpec, Execution]:
    return request.param, *tiny(POINTS[request.param])


def test_parameters(run):
    name, spec, execution = run
    found = cost(spec, execution, RATE)
    shared = 2 * V * D + D + LAYERS * (ATTENTION + NORMS + EXTRA_NORM[name] + ROUTERS[name])
    assert found.parameters == shared + LAYERS * MATRICES[name]
    # k*g, with the generalist, is 1: every model is as wide as the dense one for a token.
    assert found.active_parameters == shared + LAYERS * 3 * D * D_FF


def test_flops_and_seconds(run):
    name, spec, execution = run
    found = cost(spec, execution, RATE)
    assert found.tokens == STEPS * B * S
    # Two FLOPs a weight forward and four backward; the head is a product, the embedding is a look-up.
    weights = LAYERS * (ATTENTION + 3 * D * D_FF + ROUTERS[name]) + V * D
    # Scores and values: 2 products of S x D a token and layer, 2 FLOPs each, three times over.
    attention = LAYERS * 2 * (2 * S * D) * 3
    assert found.flops == STEPS * B * S * (6 * weights + attention)
    assert found.seconds == pytest.approx(found.flops / 0.5e9, rel=1e-12)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
@pytest.mark.parametrize("name", POINTS)
def test_bytes(tiny, name: str, dtype: str, size: int):
    spec, execution = tiny({**POINTS[name], "compute_dtype": dtype})
    experts = {"dense": 2 * 64, "moe": 4 * D, "generalist": 3 * D + 2 * 16}[name]
    logits = 2 * 4 * V  # more than attention's scores of two heads and 16 positions
    activations = B * S * (LAYERS * (6 * D + experts) * size + logits + footprint.BLOCK * D * size)
    found = cost(spec, execution, RATE)
    # Parameters, two moments and gradients, of a micro-batch and summed up, stay float32 whatever activations are;
    # embedding and head are cast.
    tables = 2 * V * D * 2 if dtype == "bfloat16" else 0
    assert found.bytes == 5 * 4 * found.parameters + activations + tables


def test_attention_scores_are_counted_where_they_are_more_than_logits(tiny):
    short, execution = tiny({"model.vocab_size": 16})
    long, _ = tiny({"model.vocab_size": 16, "data.sequence_length": 64})
    more, less = (memory_parts(spec, execution)["buffers"] for spec in (long, short))
    scores = B * HEADS * (64**2 - S**2) * (2 * 4 + footprint.SCORES)
    assert more - less == scores + footprint.BLOCK * B * (64 - S) * D * 4


def test_rematerialisation_and_small_batches_take_less_memory(run, tiny):
    name, spec, execution = run
    deep, _ = tiny({**POINTS[name], "model.layers": 8})
    remat = dataclasses.replace(execution, remat=True)
    # Of two layers it may take more: one is computed again while its gradients are.
    assert _of_tokens(deep, remat) < _of_tokens(deep, execution)
    # A layer more costs its input alone.
    assert _of_tokens(deep, remat) - _of_tokens(spec, remat) == 6 * B * S * D * 4
    half = dataclasses.replace(execution, micro_batch=execution.micro_batch // 2)
    assert 2 * _of_tokens(spec, half) == _of_tokens(spec, execution)
    assert cost(spec, half, RATE).flops == cost(spec, execution, RATE).flops


def _of_tokens(spec: RunSpec, execution: Execution) -> int:
    parts = memory_parts(spec, execution)
    return parts["activations"] + parts["buffers"]


def test_a_mesh_shares_out_what_it_shards(tiny):
    point = {**MOE, "router.group": 1}
    spec, alone = tiny(point)
    _, shared = tiny({**point, "execution.mesh": "data=2 expert=4", "execution.micro_batch": 1})
    one, eight = memory_parts(spec, alone), memory_parts(spec, shared)
    gains = 4 * (LAYERS * 4 * D + D)  # which every device has
    assert eight["parameters"] == (one["parameters"] - gains) // 8 + gains


def test_logits_at_once_are_those_of_the_model():
    assert footprint.LOGIT_BYTES == cross_entropy.LOGIT_BYTES


def test_every_device_sustains_a_part_of_its_peak(run):
    _, spec, execution = run
    for name, rate in RATES.items():
        assert 0 < rate.sustained < rate.peak, name
        assert cost(spec, execution, rate).seconds == pytest.approx(spec.flops / rate.peak / rate.utilization)


def test_a_cost_is_plain_numbers(run):
    _, spec, execution = run
    found = cost(spec, execution, RATE)
    plain = found.as_dict()
    assert {type(value) for value in plain.values()} == {int, float, dict}
    assert json.loads(json.dumps(plain)) == plain
    assert plain["parameters"] == found.parameters
    assert plain["seconds"] == found.seconds


@pytest.mark.parametrize("mesh", ["", "data=2 expert=4", "replica=2 data=4"])
@pytest.mark.parametrize("remat", [False, True])
def test_utilization_is_what_was_sustained(mesh: str, remat: bool, tiny):
    """A run that took as long as one was planned to is planned to take as long."""
    micro_batch = 1 if mesh else 8
    flags = {"execution.mesh": mesh, "execution.remat": remat, "execution.micro_batch": micro_batch}
    spec, execution = tiny({**MOE, **flags, "router.group": 1})
    rate = Rate(peak=2e9, utilization=0.25, links=1e9, network=1e7)
    assert utilization(spec, execution, rate, step_seconds(spec, execution, rate)) == pytest.approx(0.25)


def test_replicas_meet_over_the_network(tiny):
    spec, execution = tiny({**MOE, "execution.mesh": "replica=2", "router.group": 1, "execution.micro_batch": 1})
    found = cost(spec, execution, Rate(peak=2e9, utilization=0.25, links=1e9, network=1e6))
    # Each receives half of the sum of all gradients, and then the other half, in float32; nothing else travels.
    assert found.traffic == {"parameters": 0, "gradients": 0, "replicas": 4 * found.parameters, "tokens": 0}
    assert found.seconds == pytest.approx(found.flops / 1e9 + STEPS * 4 * found.parameters / 1e6)
