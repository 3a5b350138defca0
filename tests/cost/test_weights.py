"""Parameters counted from a spec are those of the model: as many, as large, with the same logical axes."""

from collections import Counter

import jax
import pytest
from flax import nnx

from slicedice.cost.weights import weights
from slicedice.model import Decoder

POINTS = {
    "dense": {},
    "homogeneous": {"model.experts": "n=8 k=4 g=1/4"},
    "heterogeneous": {"model.experts": "n=4 k=1 g=1/2 + n=8 k=2 g=1/4"},
    "generalist": {"model.experts": "n=8 k=3 g=1/4", "model.generalist": "1/4"},
    "plain wiring": {"model.experts": "n=8 k=3 g=1/4", "model.generalist": "1/4", "model.wiring": "plain"},
}


@pytest.mark.parametrize("name", POINTS)
def test_they_are_the_models(name: str, tiny):
    spec, _ = tiny({**POINTS[name], "model.layers": 3})
    model = nnx.eval_shape(lambda: Decoder(spec.model, key=jax.random.key(0)))
    found: Counter = Counter()
    for parameter in jax.tree.leaves(nnx.state(model, nnx.Param), is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)):
        axes = parameter.get_metadata()["axes"]
        layers = parameter.shape[0] if len(parameter.shape) > len(axes) else 0
        assert tuple(size for _, size in axes) == parameter.shape[bool(layers) :]
        found[axes, layers] += 1
    assert Counter((weight.axes, weight.layers) for weight in weights(spec)) == found
    assert sum(weight.size * weight.copies for weight in weights(spec)) == spec.model.parameters()
