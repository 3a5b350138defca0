"""What devices send each other, against what a compiled program sends, and by hand."""

import jax
import jax.numpy as jnp
import pytest

from slicedice.cost.hlo import collectives
from slicedice.cost.traffic import traffic
from slicedice.training import Program

RUN = {
    "router.group": 1,
    "budget.batch_size": 16,
    "model.vocab_size": 512,
    "model.layers": 3,
    "execution.expert_slack": 8.0,
    "execution.dispatch": "gather",
}
POINTS = {
    "dense": {"execution.mesh": "data=8"},
    "dense, two axes": {"execution.mesh": "data=2 expert=4"},
    "one axis": {"model.experts": "n=8 k=2 g=1/2", "execution.mesh": "expert=8"},
    "two axes": {"model.experts": "n=8 k=2 g=1/2", "execution.mesh": "data=2 expert=4"},
    "three axes": {"model.experts": "n=8 k=2 g=1/2", "execution.mesh": "replica=2 data=2 expert=2"},
    "indivisible": {"model.experts": "n=6 k=2 g=1/2", "execution.mesh": "data=2 expert=4"},
    "heterogeneous": {"model.experts": "n=4 k=1 g=1/2 + n=8 k=2 g=1/4", "execution.mesh": "data=2 expert=4"},
}


@pytest.mark.parametrize("remat", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", POINTS)
def test_it_is_what_the_program_sends(name: str, remat: bool, tiny):
    """One micro-batch, so that the compiler has nothing to move out of a loop."""
    spec, execution = tiny({**RUN, **POINTS[name], "execution.remat": remat})
    program = Program(spec, execution)
    text = program.lower().compile().as_text()
    assert text is not None
    sent = sum(one.received for one in collectives(text))
    assert sum(traffic(spec, execution).values()) == pytest.approx(sent, rel=0.05)


def test_by_hand(tiny):
    """Two devices that share out experts; float32; everything is seen by both, half of it from the other."""
    spec, execution = tiny(
        {**RUN, "model.experts": "n=8 k=2 g=1/2", "execution.mesh": "expert=2", "execution.micro_batch": 4}
    )
    d, v, layers, tokens, micro_batches = 16, 512, 3, 4 * 16, 2
    found = traffic(spec, execution)
    # Attention and routers are gathered twice in each of two micro-batches, embedding and head once.
    layer = 4 * d * d + d * 8
    assert found["parameters"] == 4 * (2 * v * d / 2 + micro_batches * layers * 2 * layer / 2)
    # Experts stay where they are. Gains are summed on both, once: twice a half of all of them.
    gains = layers * 4 * d + d
    assert found["gradients"] == 4 * (2 * v * d / 2 + micro_batches * layers * layer / 2 + gains)
    # Tokens with two indices and two weights, twice; outputs; gradients of outputs, tokens and weights.
    token = 2 * (4 * d + 2 * (2 + 4)) + 4 * d + 4 * d + 4 * d + 2 * 4
    assert found["tokens"] == micro_batches * layers * tokens * token


def test_one_device_hears_nothing(tiny):
    assert set(traffic(*tiny({"model.experts": "n=8 k=2 g=1/2"})).values()) == {0}


def test_loops_count_as_often_as_they_turn():
    mesh = jax.sharding.Mesh(jax.devices()[:4], ("x",))
    spec = jax.sharding.PartitionSpec

    def body(total, row):
        return total + jax.lax.all_gather(row * total.sum(), "x", tiled=True), None

    def loops(x):
        total, _ = jax.lax.scan(body, jnp.zeros(x.shape[1] * 4), x)
        return total

    shards = jax.shard_map(loops, mesh=mesh, in_specs=spec(None, "x"), out_specs=spec(), check_vma=False)
    text = jax.jit(shards).lower(jax.ShapeDtypeStruct((5, 32), jnp.float32)).compile().as_text()
    assert text is not None
    (found,) = collectives(text)
    assert (found.kind, found.count, found.received) == ("all-gather", 5, 5 * 3 / 4 * 32 * 4)
