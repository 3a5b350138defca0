"""A device that is sent more than it has room for says so, and says how much."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slicedice.training import Hyper


def _lost(program) -> float:
    """Of a step in which all tokens choose the first two experts, whose bias is greater than any probability."""
    rows = np.arange(16 * 17, dtype=np.int32).reshape(16, 17) % 251
    state = program.init(jnp.uint32(0))
    bias = jax.tree.map(lambda b: jax.device_put(b.at[:, :2].set(2.0), b.sharding), state.bias)
    _, metrics = program.step(state._replace(bias=bias), program.place(rows.__getitem__), Hyper.of(program.spec))
    return metrics["lost_assignments"].item()


@pytest.mark.parametrize("dispatch", ["gather", "send"])
@pytest.mark.parametrize("slack", [3.0, 4.0])
def test_what_finds_no_room_is_counted(slack: float, dispatch: str, programs):
    # Twice, four devices share out 128 tokens with 2 experts each, the same two, which one of the four devices has.
    assignments, devices = 128 * 2, 4
    lost = _lost(programs("homogeneous", "data=2 expert=4", expert_slack=slack, dispatch=dispatch))
    layers, groups = 2, 2
    assert lost == layers * groups * (assignments - slack * assignments / devices)


def test_at_worst_a_device_needs_room_for_all(programs):
    assert _lost(programs("homogeneous", "expert=8", expert_slack=8.0)) == 0
