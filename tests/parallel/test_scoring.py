"""A sharded model is scored as it is on one device, however little room its devices begin with."""

import jax.numpy as jnp
import numpy as np
import pytest

from slicedice.evaluation.scoring import scorers
from slicedice.training import routing_of


def _nats(program) -> dict[str, np.ndarray]:
    state = program.init(jnp.uint32(3))
    tokens = np.full((16, 17), 7, np.int32)  # all alike, so that a few experts are sent everything
    tokens[:, 5:9] = np.arange(64).reshape(16, 4)
    text = np.ones((16, 16), bool)
    text[-1, 10:] = False
    ways = scorers(program.model(state), program.spec, routing_of(program.spec, program.execution), 16)
    return {name: np.asarray(score(tokens, text, text)) for name, score in ways.items()}


@pytest.mark.parametrize("dispatch", ["gather", "send"])
@pytest.mark.parametrize("layer", ["homogeneous", "dropping"])
def test_scores_do_not_depend_on_the_mesh(layer: str, dispatch: str, programs):
    alone = _nats(programs(layer))
    sharded = _nats(programs(layer, "data=2 expert=4", expert_slack=1.0, dispatch=dispatch))
    assert sharded.keys() == alone.keys()
    for name, nats in alone.items():
        np.testing.assert_allclose(sharded[name], nats, rtol=1e-5)
