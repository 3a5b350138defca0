"""A device that is sent more than it has room for says so, and says how much."""

import jax.numpy as jnp
import numpy as np
import pytest

from slicedice.training import Hyper


def _lost(program) -> float:
    rows = np.full((16, 17), 7, np.int32)  # one token, so that all choose the same experts
    state = program.init(jnp.uint32(0))
    _, metrics = program.step(state, program.place(rows.__getitem__), Hyper.of(program.spec))
    return metrics["lost_assignments"].item()


@pytest.mark.parametrize("dispatch", ["gather", "send"])
@pytest.mark.parametrize("slack", [1.0, 4.0])
def test_what_finds_no_room_is_counted(slack: float, dispatch: str, programs):
    # Rows of text that repeats one token differ by position alone: layers still route nearly all of them alike, so that
    # k = 2 of 8 experts, on one or two of four devices, are sent everything.
    lost = _lost(programs("homogeneous", "data=2 expert=4", expert_slack=slack, dispatch=dispatch))
    assert (lost > 0) == (slack < 4)


def test_at_worst_a_device_needs_room_for_all(programs):
    assert _lost(programs("homogeneous", "expert=8", expert_slack=8.0)) == 0
