"""The spec's arithmetic counts the parameters of the model that is built."""

import jax
import pytest
from flax import nnx

from slicedice.model import Decoder


@pytest.mark.parametrize(
    ("experts", "generalist", "wiring"),
    [
        ("dense", "", "plain"),
        ("n=7 k=2 g=1/2", "", "parallel"),
        ("n=4 k=1 g=1/2 + n=9 k=2 g=1/4", "", "plain"),
        ("n=6 k=2 g=1/4", "1/2", "plain"),
        ("n=6 k=2 g=1/4", "1/2", "parallel"),
        ("n=7 k=1 g=1/4 + n=14 k=2 g=1/8", "1/2", "parallel"),
    ],
)
def test_counts_agree(experts: str, generalist: str, wiring: str, tiny):
    spec = tiny({"model.experts": experts, "model.generalist": generalist, "model.wiring": wiring})[0].model
    model = nnx.eval_shape(lambda: Decoder(spec, key=jax.random.key(0)))
    sizes = {
        jax.tree_util.keystr(path): leaf.size for path, leaf in jax.tree.leaves_with_path(nnx.state(model, nnx.Param))
    }
    assert sum(sizes.values()) == spec.parameters()
    routers = sum(size for name, size in sizes.items() if "router" in name)
    assert routers == spec.router_parameters()
    assert spec.parameters(routers=False) == spec.parameters() - routers
    experts_only = sum(size for name, size in sizes.items() if "experts" in name)
    idle = sum((e.n - e.k) * 3 * spec.d_model * spec.width(e.g) for e in spec.layer.experts) * spec.layers
    assert spec.parameters(active=True) == spec.parameters() - idle
    assert experts_only == sum(e.n * 3 * spec.d_model * spec.width(e.g) for e in spec.layer.experts) * spec.layers
